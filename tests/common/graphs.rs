//! Small model repositories that are written, not trained: graphs that cost next to nothing, fail for some inputs, or
//! take as long as their input says.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

use super::onnx::{FLOAT, INT64, Onnx, UINT8};

/// A backbone with one feature `f`, float32, NHWC.
#[derive(Clone, Copy)]
pub(crate) struct Sampler {
    pub(crate) stride: u32,
    pub(crate) channels: u32,
    pub(crate) sizes: &'static [[u32; 2]],
    /// If not, the feature is the image's first bytes, which costs next to nothing. If so, it is every `stride`th pixel,
    /// and the first pixel's values do more: red from 200 on makes the graph fail, and green makes it slow (the cost
    /// grows with the third power; 255 takes seconds).
    pub(crate) touchy: bool,
    /// Name of the operator that fails, which its error tells.
    pub(crate) failing: &'static str,
    /// Matrix products that make it slow, one after another.
    pub(crate) products: usize,
}

/// Next to no work: 48 KB in, 16 KB out.
pub(crate) const ECHO: Sampler = Sampler {
    stride: 4,
    channels: 4,
    sizes: &[[128, 128]],
    touchy: false,
    failing: "",
    products: 0,
};

/// Fails and dawdles as its input says; takes two sizes.
pub(crate) const TOUCHY: Sampler = Sampler {
    stride: 32,
    channels: 3,
    sizes: &[[64, 64], [96, 96]],
    touchy: true,
    failing: "lookup",
    products: 1,
};

/// Red of a first pixel that makes a touchy backbone fail.
pub(crate) const BAD_FOR_BACKBONE: u8 = 200;
/// Red of a first pixel that makes a [`fragile`] head fail, but not the backbone.
pub(crate) const BAD_FOR_HEAD: u8 = 100;

impl Sampler {
    fn graph(self) -> Vec<u8> {
        if !self.touchy {
            return self.first_bytes();
        }
        let stride = i64::from(self.stride);
        // Reading past the end of a table fails; the product of two matrices as large as green says takes its time.
        let graph = Onnx::default()
            .input("image", UINT8, &["N", "H", "W", "3"])
            .output("f", FLOAT, &["N", "h", "w", "3"])
            .ints("from", &[0, 0])
            .ints("to", &[i64::MAX, i64::MAX])
            .ints("axes", &[1, 2])
            .ints("steps", &[stride, stride])
            .node(
                "Slice",
                &["image", "from", "to", "axes", "steps"],
                "sampled",
                &[],
            )
            .node("Cast", &["sampled"], "plain", &[("to", FLOAT.into())])
            .ints("one", &[1, 1])
            .node("Slice", &["image", "from", "one", "axes"], "first", &[])
            .node("Cast", &["first"], "index", &[("to", INT64.into())])
            .ints("channel", &[3])
            .ints("zero", &[0])
            .ints("unit", &[1])
            .ints("two", &[2])
            .node("Slice", &["index", "zero", "unit", "channel"], "red", &[])
            .node("Slice", &["index", "unit", "two", "channel"], "green", &[])
            .floats("table", &[0.0; BAD_FOR_BACKBONE as usize])
            .node("Gather", &["table", "red"], "nothing", &[])
            .named(self.failing)
            .ints("scale", &[16])
            .node("ReduceMax", &["green"], "most", &[("keepdims", 0)])
            .node("Mul", &["most", "scale"], "side", &[])
            .ints("columns", &[1])
            .node("Concat", &["side", "side"], "square", &[("axis", 0)])
            .node("Concat", &["columns", "side"], "thin", &[("axis", 0)])
            .floats("half", &[0.5])
            .node("Expand", &["half", "square"], "product0", &[])
            .node("Expand", &["half", "thin"], "row", &[])
            .node("Expand", &["row", "square"], "right", &[]);
        let product = |index: usize| format!("product{index}");
        let multiply = |graph: Onnx, index: usize| {
            graph.node(
                "MatMul",
                &[&product(index), "right"],
                &product(index + 1),
                &[],
            )
        };
        (0..self.products)
            .fold(graph, multiply)
            .node(
                "ReduceSum",
                &[&product(self.products)],
                "sum",
                &[("keepdims", 0)],
            )
            .floats("never", &[0.0])
            .node("Mul", &["sum", "never"], "void", &[])
            .node("Add", &["plain", "nothing"], "checked", &[])
            .node("Add", &["checked", "void"], "f", &[])
            .bytes()
    }

    fn first_bytes(self) -> Vec<u8> {
        let [height, width] = self.sizes[0].map(|side| i64::from(side / self.stride));
        let channels = i64::from(self.channels);
        Onnx::default()
            .input("image", UINT8, &["N", "H", "W", "3"])
            .output("f", FLOAT, &["N", "h", "w", "c"])
            .node("Flatten", &["image"], "flat", &[("axis", 1)])
            .ints("from", &[0])
            .ints("to", &[height * width * channels])
            .ints("axis", &[1])
            .node("Slice", &["flat", "from", "to", "axis"], "first", &[])
            .node("Cast", &["first"], "floats", &[("to", FLOAT.into())])
            .ints("shape", &[-1, height, width, channels])
            .node("Reshape", &["floats", "shape"], "f", &[])
            .bytes()
    }

    /// Writes `backbone.toml` and `backbone.onnx` under `root`; its fingerprint.
    pub(crate) fn write(self, root: &Path) -> String {
        let graph = self.graph();
        let sha256 = hex::encode(Sha256::digest(&graph));
        let manifest = format!(
            "name = \"sampler\"\nversion = \"1\"\nfile = \"backbone.onnx\"\nsha256 = \"{sha256}\"\nprecision = \"fp32\"\n\
             [input]\nname = \"image\"\nsizes = {:?}\nresize = \"stretch\"\n\
             [[features]]\nname = \"f\"\nstride = {}\nchannels = {}\nlayout = \"NHWC\"\n",
            self.sizes, self.stride, self.channels
        );
        fs::write(root.join("backbone.onnx"), graph).unwrap();
        fs::write(root.join("backbone.toml"), manifest).unwrap();
        sha256
    }
}

/// A head's graph.
pub(crate) enum HeadGraph {
    /// The feature as it is.
    Echo,
    /// The feature's mean times a factor: `[N, 1]`.
    Mean(f32),
    /// As `Mean(1.0)`, but fails where the first pixel is [`BAD_FOR_HEAD`] or more.
    Fragile,
    /// Not a graph at all.
    Broken,
}

impl HeadGraph {
    fn bytes(&self) -> Vec<u8> {
        let graph = Onnx::default().input("f", FLOAT, &["N", "h", "w", "c"]);
        match self {
            Self::Echo => graph
                .output("out", FLOAT, &["N", "h", "w", "c"])
                .node("Identity", &["f"], "out", &[])
                .bytes(),
            Self::Mean(factor) => mean(graph)
                .floats("factor", &[*factor])
                .node("Mul", &["mean", "factor"], "out", &[])
                .bytes(),
            Self::Fragile => mean(graph)
                .ints("from", &[0, 0, 0])
                .ints("to", &[1, 1, 1])
                .ints("axes", &[1, 2, 3])
                .node("Slice", &["f", "from", "to", "axes"], "first", &[])
                .node("Cast", &["first"], "index", &[("to", INT64.into())])
                .floats("table", &[0.0; BAD_FOR_HEAD as usize])
                .node("Gather", &["table", "index"], "nothing", &[])
                .ints("shape", &[-1, 1])
                .node("Reshape", &["nothing", "shape"], "flat", &[])
                .node("Add", &["mean", "flat"], "out", &[])
                .bytes(),
            Self::Broken => b"not a graph".to_vec(),
        }
    }
}

/// `[N, 1]`: each row's mean.
fn mean(graph: Onnx) -> Onnx {
    graph
        .output("out", FLOAT, &["N", "1"])
        .node("Flatten", &["f"], "row", &[("axis", 1)])
        .ints("line", &[1])
        .node("Unsqueeze", &["row", "line"], "lined", &[])
        .node("GlobalAveragePool", &["lined"], "pooled", &[])
        .node("Flatten", &["pooled"], "mean", &[("axis", 1)])
}

/// Writes the head `name` under `root`, into place by a rename, as one who copies a folder does well to.
pub(crate) fn write_head(
    root: &Path,
    name: &str,
    version: &str,
    backbone: &str,
    size: [u32; 2],
    graph: &HeadGraph,
) {
    let heads = root.join("heads");
    let (hidden, folder) = (heads.join(format!(".{name}")), heads.join(name));
    fs::create_dir_all(&hidden).unwrap();
    let graph = graph.bytes();
    let sha256 = hex::encode(Sha256::digest(&graph));
    let manifest = format!(
        "name = \"{name}\"\nversion = \"{version}\"\ntask = \"tensor\"\nfile = \"head.onnx\"\nsha256 = \"{sha256}\"\n\
         backbone = \"{backbone}\"\ninput_size = {size:?}\nfeatures = [\"f\"]\n"
    );
    fs::write(hidden.join("head.onnx"), graph).unwrap();
    fs::write(hidden.join("head.toml"), manifest).unwrap();
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::rename(hidden, folder).unwrap();
}

/// Raw pixels of one size: the first as given, all others `level`.
pub(crate) fn pixels([height, width]: [u32; 2], first: [u8; 3], level: u8) -> bytes::Bytes {
    let mut rgb = vec![level; height as usize * width as usize * 3];
    rgb[..3].copy_from_slice(&first);
    rgb.into()
}

/// What a [`HeadGraph::Mean`] head of factor 1 says of [`pixels`] on [`TOUCHY`].
pub(crate) fn expected_mean([height, width]: [u32; 2], first: [u8; 3], level: u8) -> f32 {
    let cells = (height / TOUCHY.stride * (width / TOUCHY.stride)) as f32;
    let first: f32 = first.iter().map(|&v| f32::from(v)).sum();
    (first + (cells - 1.0) * 3.0 * f32::from(level)) / (cells * 3.0)
}
