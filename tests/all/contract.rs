//! Heads whose graphs are not what their manifests say: found at start where that can be, and else in the call that meets
//! it, naming the output and what would be right. The others go on.

mod shapes;

use std::{fs, path::Path};

use frostline::{
    backend::Runtime,
    client::raw,
    engine::Engine,
    proto::{self, head_result::Outcome as Answer},
    repository::Repository,
};
use sha2::{Digest, Sha256};

use crate::{
    common::{
        graphs::{ECHO, pixels},
        onnx::{FLOAT, INT64, Onnx},
    },
    support::{Running, one_lane},
};

/// Rows of a detection head here, of eight values each: four sides, score, label, mask, and one that poisons.
const ROWS: i64 = 12;
const VALUES: i64 = ROWS * 8;
/// Byte of the image that poisons.
const POISON: usize = VALUES as usize - 1;
/// The busy image that heads are tried on has 61 there.
const IN_THE_DRY_RUN: f32 = 30.0;
/// Above all that the images have which heads are tried on.
const IN_A_CALL: f32 = 254.0;

/// What is done to an output where the poisonous byte is above a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Poison {
    /// NaN everywhere.
    Nan,
    /// Half a unit more for each that the byte is above the limit.
    More,
}

/// Head graphs of all tasks on the feature of [`ECHO`], which is the image's first bytes.
struct Graph {
    onnx: Onnx,
    /// Output that is poisoned, how and above which byte.
    poisoned: (&'static str, Poison, f32),
}

impl Graph {
    fn new(feature: &[&str], poisoned: (&'static str, Poison, f32)) -> Self {
        let onnx = Onnx::default()
            .input("f", FLOAT, feature)
            .node("Flatten", &["f"], "flat", &[("axis", 1)])
            .ints("0", &[0])
            .ints("1", &[1])
            .ints("all", &[VALUES])
            .node("Slice", &["flat", "0", "all", "1"], "values", &[])
            .ints("last", &[POISON as i64])
            .node("Slice", &["flat", "last", "all", "1"], "byte", &[])
            .floats("limit", &[poisoned.2])
            .node("Sub", &["limit", "byte"], "below", &[])
            .floats("0f", &[0.0])
            .node("Sqrt", &["below"], "root", &[])
            .node("Mul", &["root", "0f"], "nan", &[])
            .node("Neg", &["below"], "above", &[])
            .node("Relu", &["above"], "over", &[])
            .floats("half", &[0.5])
            .node("Mul", &["over", "half"], "more", &[]);
        Self { onnx, poisoned }
    }

    /// The output `name`: the tensor `from`, of this many dimensions, poisoned if it is to be.
    fn give(self, name: &str, from: &str, element: i32, rank: usize) -> Self {
        let (victim, poison, _) = self.poisoned;
        let dims: Vec<String> = (1..rank).map(|axis| format!("{name}{axis}")).collect();
        let dims: Vec<&str> = std::iter::once("N")
            .chain(dims.iter().map(String::as_str))
            .collect();
        let onnx = self.onnx.output(name, element, &dims);
        let clean = format!("{name}-clean");
        let onnx = if victim == name {
            let (shape, poison_of, sum) = (
                format!("{name}-rank"),
                format!("{name}-poison"),
                format!("{name}-sum"),
            );
            let source = match poison {
                Poison::Nan => "nan",
                Poison::More => "more",
            };
            let mut ones = vec![1; rank];
            ones[0] = -1;
            onnx.ints(&shape, &ones)
                .node("Reshape", &[source, &shape], &poison_of, &[])
                .node("Add", &[from, &poison_of], &sum, &[])
                .node("Identity", &[&sum], &clean, &[])
        } else {
            onnx.node("Identity", &[from], &clean, &[])
        };
        let onnx = match element {
            INT64 => onnx.node("Cast", &[&clean], name, &[("to", INT64.into())]),
            _ => onnx.node("Identity", &[&clean], name, &[]),
        };
        Self { onnx, ..self }
    }

    /// The values from `first` on, `count` to a row, times `factor`, as `name`.
    fn column(self, name: &str, first: i64, count: i64, factor: f32) -> Self {
        let (from, to, scale) = (
            format!("{name}-from"),
            format!("{name}-to"),
            format!("{name}-scale"),
        );
        let plain = format!("{name}-plain");
        let onnx = self
            .onnx
            .ints(&from, &[first])
            .ints(&to, &[first + count])
            .node("Slice", &["rows", &from, &to, "2"], &plain, &[])
            .floats(&scale, &[factor])
            .node("Mul", &[&plain, &scale], name, &[]);
        Self { onnx, ..self }
    }

    fn shaped(self, name: &str, from: &str, shape: &[i64]) -> Self {
        let to = format!("{name}-shape");
        let onnx = (self.onnx.ints(&to, shape)).node("Reshape", &[from, &to], name, &[]);
        Self { onnx, ..self }
    }

    fn detection(self) -> Self {
        let onnx = self.onnx.ints("2", &[2]).ints("grid", &[1, ROWS, 2, 2]);
        let graph = Self { onnx, ..self }
            .shaped("rows", "values", &[-1, ROWS, 8])
            .column("box", 0, 4, 1.0)
            .column("chance", 4, 1, 1.0 / 254.0)
            .column("kind", 5, 1, 1.0 / 64.0)
            .column("cell", 6, 1, 1.0 / 254.0)
            .shaped("score", "chance", &[-1, ROWS])
            .shaped("label", "kind", &[-1, ROWS])
            .shaped("cells", "cell", &[-1, ROWS, 1, 1]);
        let onnx = graph.onnx.node("Expand", &["cells", "grid"], "mask", &[]);
        Self { onnx, ..graph }
            .give("boxes", "box", FLOAT, 3)
            .give("scores", "score", FLOAT, 2)
            .give("labels", "label", INT64, 2)
            .give("masks", "mask", FLOAT, 4)
    }

    fn logits(self) -> Self {
        let onnx = self.onnx.ints("two", &[2]);
        let onnx = onnx.node("Slice", &["values", "0", "two", "1"], "pair", &[]);
        Self { onnx, ..self }.give("logits", "pair", FLOAT, 2)
    }

    fn of(task: &str, poisoned: (&'static str, Poison, f32)) -> Vec<u8> {
        let image = ["N", "32", "32", "4"];
        let clip = ["N", "2", "32", "32", "4"];
        let graph = match task {
            "detection" => Self::new(&image, poisoned).detection(),
            "segmentation" if poisoned.0 == "label_map" => Self::new(&image, poisoned)
                .shaped("map", "values", &[-1, ROWS, 8])
                .shrunk("map", "small")
                .give("label_map", "small", INT64, 3),
            "segmentation" => Self::new(&image, poisoned)
                .shaped("dense", "values", &[-1, 2, ROWS, 4])
                .give("logits", "dense", FLOAT, 4),
            "action" => Self::new(&clip, poisoned).logits(),
            "classification" => Self::new(&image, poisoned).logits(),
            _ => Self::new(&image, poisoned).give("vector", "values", FLOAT, 2),
        };
        graph.onnx.bytes()
    }

    fn shrunk(self, from: &str, name: &str) -> Self {
        let onnx = self.onnx.floats("128th", &[1.0 / 256.0]);
        let onnx = onnx.node("Mul", &[from, "128th"], name, &[]);
        Self { onnx, ..self }
    }
}

/// Writes the head `name` with this graph.
fn write(root: &Path, backbone: &str, name: &str, task: &str, labels: usize, graph: &[u8]) {
    let folder = root.join("heads").join(name);
    fs::create_dir_all(&folder).unwrap();
    let sha256 = hex::encode(Sha256::digest(graph));
    let labels: Vec<String> = (0..labels).map(|label| format!("{label}")).collect();
    let post = match task {
        "detection" => "score_threshold = 0.2\nnms_iou = 0.5\nmask = \"box\"\n",
        "action" => "frames = 2\n",
        _ => "",
    };
    let manifest = format!(
        "name = \"{name}\"\nversion = \"1\"\ntask = \"{task}\"\nfile = \"head.onnx\"\nsha256 = \"{sha256}\"\n\
         backbone = \"{backbone}\"\ninput_size = [128, 128]\nfeatures = [\"f\"]\nlabels = {labels:?}\n\
         [postprocess]\n{post}"
    );
    fs::write(folder.join("head.onnx"), graph).unwrap();
    fs::write(folder.join("head.toml"), manifest).unwrap();
}

/// What starting with this one head says.
fn start(task: &str, labels: usize, graph: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let backbone = ECHO.write(folder.path());
    write(folder.path(), &backbone, "head", task, labels, graph);
    started(folder.path())
}

fn started(root: &Path) -> Result<(), String> {
    let repository = Repository::open(root).map_err(|error| error.to_string())?;
    let runtime = Runtime::load(None).unwrap();
    let engine = Engine::start(&runtime, &repository, one_lane());
    engine
        .map(|engine| engine.stop())
        .map_err(|error| error.to_string())
}

/// Task, number of labels, output, what is wrong with it, and how that is told.
const CASES: [(&str, usize, &str, Poison, &str); 11] = [
    (
        "detection",
        4,
        "boxes",
        Poison::Nan,
        "holds a value that is not finite",
    ),
    (
        "detection",
        4,
        "scores",
        Poison::Nan,
        "holds NaN, but must be probabilities, from 0 to 1",
    ),
    (
        "detection",
        4,
        "scores",
        Poison::More,
        "but must be probabilities, from 0 to 1",
    ),
    (
        "detection",
        4,
        "labels",
        Poison::More,
        "but the manifest has 4 labels, numbered from 0",
    ),
    (
        "detection",
        4,
        "masks",
        Poison::Nan,
        "holds NaN, but must be probabilities, from 0 to 1",
    ),
    (
        "detection",
        4,
        "masks",
        Poison::More,
        "but must be probabilities, from 0 to 1",
    ),
    (
        "segmentation",
        2,
        "logits",
        Poison::Nan,
        "holds a value that is not finite",
    ),
    (
        "segmentation",
        1,
        "label_map",
        Poison::More,
        "but the manifest has 1 labels, numbered from 0",
    ),
    (
        "action",
        2,
        "logits",
        Poison::Nan,
        "holds a value that is not finite",
    ),
    (
        "classification",
        2,
        "logits",
        Poison::Nan,
        "holds a value that is not finite",
    ),
    (
        "embedding",
        0,
        "vector",
        Poison::Nan,
        "holds a value that is not finite",
    ),
];

#[test]
fn values_that_no_output_may_hold_are_found_at_start() {
    for (task, labels, output, poison, words) in CASES {
        let graph = Graph::of(task, (output, poison, IN_THE_DRY_RUN));
        let said = start(task, labels, &graph).expect_err(output);
        let named = format!("heads/head/head.onnx: output \"{output}\": holds");
        assert!(said.starts_with(&named), "{task}, {poison:?}: {said}");
        assert!(said.contains(words), "{task}, {poison:?}: {said}");
    }
    // Of raw outputs nothing is promised.
    let graph = Graph::of("tensor", ("vector", Poison::Nan, IN_THE_DRY_RUN));
    start("tensor", 0, &graph).unwrap();
}

/// An image whose first bytes are good rows, and poisonous if so.
fn image(poisonous: bool) -> proto::Image {
    let mut rgb = pixels([128, 128], [0; 3], 0).to_vec();
    for (row, values) in rgb[..VALUES as usize].chunks_exact_mut(8).enumerate() {
        let left = 8 * row as u8;
        values.copy_from_slice(&[left, 10, left + 8, 60, 200, 64 * (row as u8 % 3), 200, 0]);
    }
    // Enough for a label more than there are.
    let over = if poisonous { 255 } else { 0 };
    rgb[POISON] = over;
    raw(128, 128, rgb.into())
}

async fn analyze(server: &Running, head: &str, clip: bool, poisonous: bool) -> proto::HeadResult {
    let frames = vec![image(poisonous); 2];
    let input = match clip {
        true => proto::analyze_request::Input::Clip(proto::Clip { frames }),
        false => proto::analyze_request::Input::Image(image(poisonous)),
    };
    let request = proto::AnalyzeRequest {
        input: Some(input),
        heads: vec![head.to_owned(), "good".to_owned()],
        ..Default::default()
    };
    let mut client = server.client().await;
    let answer = client.vision.analyze(request).await.unwrap().into_inner();
    // The other head of the call has its answer, whatever became of this one.
    let good = &answer.results[1];
    assert!(matches!(good.outcome, Some(Answer::Tensor(_))), "{good:?}");
    answer.results[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_no_output_may_hold_fail_the_head_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let backbone = ECHO.write(root);
    let good = Graph::of("tensor", ("none", Poison::Nan, IN_A_CALL));
    write(root, &backbone, "good", "tensor", 0, &good);
    let name = |index: usize| format!("head{index}");
    for (index, (task, labels, output, poison, _)) in CASES.into_iter().enumerate() {
        // Labels take a whole step.
        let limit = if labels > 0 && poison == Poison::More && output.starts_with("label") {
            IN_A_CALL - 10.0
        } else {
            IN_A_CALL
        };
        let graph = Graph::of(task, (output, poison, limit));
        write(root, &backbone, &name(index), task, labels, &graph);
    }
    let server = Running::start_of(&Repository::open(root).unwrap(), one_lane()).await;
    for (index, (task, _, output, poison, words)) in CASES.into_iter().enumerate() {
        let clip = task == "action";
        let head = name(index);
        let sound = analyze(&server, &head, clip, false).await;
        assert!(
            !matches!(sound.outcome, None | Some(Answer::Error(_))),
            "{task}, {output}: {sound:?}"
        );
        let failed = analyze(&server, &head, clip, true).await;
        let Some(Answer::Error(error)) = failed.outcome else {
            panic!("{task}, {output}, {poison:?}: {failed:?}")
        };
        assert_eq!(
            frostline::client::reason(&error),
            "HEAD_FAILED",
            "{error:?}"
        );
        assert!(
            error.message.contains(&format!("{output}: holds")),
            "{error:?}"
        );
        assert!(error.message.contains(words), "{error:?}");
    }
    server.stop().await;
}
