//! Shapes, types and names: what a graph has and what it must have is told in the same words.

use std::fs;

use sha2::{Digest, Sha256};

use super::{start, started};
use crate::common::{
    graphs::ECHO,
    onnx::{FLOAT, FLOAT16, INT64, Onnx, UINT8},
};

/// A graph that gives `outputs`, each the feature's sum over all but the batch, in the shape that is named.
fn shapes(input: (i32, &[&str]), outputs: &[(&str, i32, &[i64])]) -> Vec<u8> {
    let onnx = Onnx::default()
        .input("f", input.0, input.1)
        .node("Cast", &["f"], "floats", &[("to", FLOAT.into())])
        .node("Flatten", &["floats"], "flat", &[("axis", 1)])
        .ints("line", &[1])
        .node("Unsqueeze", &["flat", "line"], "lined", &[])
        .node("GlobalAveragePool", &["lined"], "pooled", &[])
        .floats("zero", &[0.0])
        .node("Mul", &["pooled", "zero"], "sum", &[]);
    let give = |onnx: Onnx, (name, element, shape): &(&str, i32, &[i64])| {
        let parts = ["ones", "shape", "one", "wide"].map(|part| format!("{name}-{part}"));
        let rank = shape.len() + 1;
        let mut one = vec![1; rank];
        one[0] = -1;
        let whole: Vec<i64> = std::iter::once(1).chain(shape.iter().copied()).collect();
        let dims: Vec<String> = (0..rank).map(|axis| format!("{name}{axis}")).collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        onnx.output(name, *element, &dims)
            .ints(&parts[0], &one)
            .ints(&parts[1], &whole)
            .node("Reshape", &["sum", &parts[0]], &parts[2], &[])
            .node("Expand", &[&parts[2], &parts[1]], &parts[3], &[])
            .node("Cast", &[&parts[3]], name, &[("to", (*element).into())])
    };
    outputs.iter().fold(onnx, give).bytes()
}

#[test]
fn what_a_graph_has_and_what_it_must_have_is_told_in_the_same_words() {
    const IMAGE: (i32, &[&str]) = (FLOAT, &["N", "h", "w", "c"]);
    const BOXES: (&str, i32, &[i64]) = ("boxes", FLOAT, &[3, 4]);
    const SCORES: (&str, i32, &[i64]) = ("scores", FLOAT, &[3]);
    const LABELS: (&str, i32, &[i64]) = ("labels", INT64, &[3]);
    const MASKS: (&str, i32, &[i64]) = ("masks", FLOAT, &[3, 2, 2]);
    let sound = shapes(IMAGE, &[BOXES, SCORES, LABELS, MASKS]);
    start("detection", 1, &sound).unwrap();
    type Case<'a> = (
        &'a str,
        (i32, &'a [&'a str]),
        &'a [(&'a str, i32, &'a [i64])],
        &'a str,
    );
    let cases: [Case; 14] = [
        (
            "tensor",
            (FLOAT, &["1", "32", "32", "4"]),
            &[SCORES],
            "input \"f\": is float32 [1, 32, 32, 4] in the graph, but must be float32 [N, 32, 32, 4], as the backbone gives \
             it at the input_size [128, 128]; the first dimension is the batch, which must be free",
        ),
        (
            "tensor",
            (FLOAT, &["N", "4", "32", "32"]),
            &[SCORES],
            "input \"f\": is float32 [N, 4, 32, 32] in the graph, but must be float32 [N, 32, 32, 4]",
        ),
        (
            "tensor",
            (FLOAT16, &["N", "h", "w", "c"]),
            &[SCORES],
            "input \"f\": is float16 [N, h, w, c] in the graph, but must be float32 [N, 32, 32, 4]",
        ),
        (
            "action",
            IMAGE,
            &[("logits", FLOAT, &[1])],
            "input \"f\": is float32 [N, h, w, c] in the graph, but must be float32 [N, 2, 32, 32, 4], as the backbone \
             gives it at the input_size [128, 128] and postprocess.frames",
        ),
        (
            "detection",
            IMAGE,
            &[BOXES, SCORES, LABELS],
            "output \"masks\": is missing: the task detection needs float32 [N, K, h, w], but the graph's outputs are \
             [\"boxes\", \"scores\", \"labels\"]",
        ),
        (
            "detection",
            IMAGE,
            &[("boxes", FLOAT, &[3, 5]), SCORES, LABELS, MASKS],
            "output \"boxes\": is float32 [N, 3, 5], but must be float32 [N, K, 4] for the task detection",
        ),
        (
            "detection",
            IMAGE,
            &[("boxes", FLOAT, &[12]), SCORES, LABELS, MASKS],
            "output \"boxes\": is float32 [N, 12], but must be float32 [N, K, 4] for the task detection",
        ),
        (
            "detection",
            IMAGE,
            &[BOXES, SCORES, ("labels", FLOAT, &[3]), MASKS],
            "output \"labels\": is float32 [N, 3], but must be int64 [N, K] for the task detection",
        ),
        (
            "detection",
            IMAGE,
            &[BOXES, ("scores", FLOAT, &[4]), LABELS, MASKS],
            "output \"scores\": is float32 [N, 4], but must be float32 [N, K], and K is 3 in the output \"boxes\"",
        ),
        (
            "segmentation",
            IMAGE,
            &[("logits", FLOAT, &[2, 4, 4])],
            "output \"logits\": is float32 [N, 2, 4, 4], but must be float32 [N, labels, h, w], and the manifest has 1 labels",
        ),
        (
            "segmentation",
            IMAGE,
            &[("label_map", FLOAT, &[4, 4])],
            "output \"label_map\": is float32 [N, 4, 4], but must be int64 [N, h, w] for the task segmentation",
        ),
        (
            "classification",
            IMAGE,
            &[("logits", FLOAT, &[3])],
            "output \"logits\": is float32 [N, 3], but must be float32 [N, labels], and the manifest has 1 labels",
        ),
        (
            "classification",
            IMAGE,
            &[("scores", FLOAT, &[1])],
            "output \"logits\": is missing: the task classification needs float32 [N, labels], but the graph's outputs are \
             [\"scores\"]",
        ),
        (
            "embedding",
            IMAGE,
            &[("vector", INT64, &[8])],
            "output \"vector\": is int64 [N, 8], but the outputs of an embedding must be float32 or float16",
        ),
    ];
    for (task, input, outputs, words) in cases {
        let labels = usize::from(!matches!(task, "tensor" | "embedding"));
        let said = start(task, labels, &shapes(input, outputs)).expect_err(words);
        assert_eq!(
            said.split_once(": ").map(|(file, _)| file),
            Some("heads/head/head.onnx"),
            "{said}"
        );
        assert!(said.contains(words), "said:   {said}\nwanted: {words}");
    }
}

#[test]
fn a_batch_that_is_fixed_inside_a_graph_is_found_at_start() {
    let graph = Onnx::default()
        .input("f", FLOAT, &["N", "h", "w", "c"])
        .output("out", FLOAT, &["N", "v"])
        .ints("shape", &[1, 4096])
        .node("Reshape", &["f", "shape"], "out", &[])
        .bytes();
    let said = start("tensor", 0, &graph).unwrap_err();
    assert!(
        said.contains("batch") && said.contains("2 calls at once"),
        "{said}"
    );
}

/// A backbone's graph that is not what its manifest says.
#[test]
fn a_backbone_is_told_of_in_the_same_words() {
    let cases: [(i32, &[&str], &str); 3] = [
        (
            FLOAT,
            &["N", "H", "W", "3"],
            "input \"image\": is float32 [N, H, W, 3] in the graph, but must be uint8 [N, 128, 128, 3], by input.sizes",
        ),
        (
            UINT8,
            &["1", "128", "128", "3"],
            "input \"image\": is uint8 [1, 128, 128, 3] in the graph, but must be uint8 [N, 128, 128, 3], by input.sizes; the \
             first dimension is the batch, which must be free",
        ),
        (
            UINT8,
            &["N", "224", "224", "3"],
            "input \"image\": is uint8 [N, 224, 224, 3] in the graph, but must be uint8 [N, 128, 128, 3], by input.sizes",
        ),
    ];
    for (element, shape, words) in cases {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let before = ECHO.write(root);
        let graph = Onnx::default()
            .input("image", element, shape)
            .output("f", FLOAT, &["N", "h", "w", "3"])
            .node("Cast", &["image"], "f", &[("to", FLOAT.into())])
            .bytes();
        let manifest = fs::read_to_string(root.join("backbone.toml")).unwrap();
        let after = hex::encode(Sha256::digest(&graph));
        fs::write(
            root.join("backbone.toml"),
            manifest.replace(&before, &after),
        )
        .unwrap();
        fs::write(root.join("backbone.onnx"), graph).unwrap();
        let said = started(root).unwrap_err();
        assert!(said.contains(words), "said:   {said}\nwanted: {words}");
    }
}
