//! Imports go one way: between the crate's modules downward only, and within each folder in no circle.
//!
//! Read from the syntax tree, so that `use crate::engine;`, `use super::{a, b::C}` and `super::a::f()` all count. What
//! only tests name does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::visit::{self, Visit};

/// For each module, the crate's modules that it may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("files", &[]),
    ("cores", &[]),
    ("corked", &[]),
    ("descriptors", &[]),
    ("memory", &[]),
    ("shares", &[]),
    ("slice", &[]),
    ("stream", &[]),
    ("proto", &[]),
    ("repository", &["files", "task"]),
    ("media", &[]),
    ("task", &["error", "media"]),
    ("track", &["task"]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("trace", &["files"]),
    ("backend", &["repository"]),
    (
        "engine",
        &[
            "backend",
            "task",
            "media",
            "repository",
            "error",
            "cores",
            "memory",
            "shares",
            "metrics",
            "telemetry",
            "trace",
        ],
    ),
    ("client", &["corked", "proto"]),
    (
        "server",
        &[
            "engine",
            "task",
            "media",
            "repository",
            "backend",
            "error",
            "files",
            "corked",
            "proto",
            "stream",
            "track",
            "shares",
            "metrics",
            "telemetry",
            "trace",
        ],
    ),
    (
        "config",
        &[
            "cores",
            "backend",
            "engine",
            "repository",
            "server",
            "media",
            "metrics",
            "telemetry",
            "trace",
            "files",
        ],
    ),
    (
        "cli",
        &[
            "config",
            "server",
            "client",
            "engine",
            "backend",
            "repository",
            "media",
            "task",
            "track",
            "proto",
            "metrics",
            "telemetry",
            "trace",
            "error",
            "files",
            "memory",
            "descriptors",
            "slice",
        ],
    ),
];

/// Crates that only these modules may name.
const OWNED: &[(&str, &[&str])] = &[
    ("ort", &["backend"]),
    ("libc", &["files", "slice"]),
    ("libmimalloc_sys", &["memory"]),
    ("rustix", &["cores", "descriptors", "files"]),
    ("tonic", &["server", "client", "proto"]),
    (
        "tokio",
        &[
            "engine", "memory", "corked", "proto", "server", "client", "cli",
        ],
    ),
    ("axum", &["server"]),
    ("hyper", &["server"]),
    ("opentelemetry", &["trace"]),
    ("prometheus_client", &["metrics"]),
];

/// A file of the crate: the path of its module, and the paths that it names, from the crate's root.
struct Source {
    module: Vec<String>,
    named: BTreeSet<Vec<String>>,
    text: String,
}

/// Collects what a file names.
struct Names {
    module: Vec<String>,
    named: BTreeSet<Vec<String>>,
}

fn of_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        attribute.path().is_ident("cfg")
            && list.is_ok_and(|list| list.tokens.to_string().contains("test"))
    })
}

impl Names {
    /// Notes a path as it stands in this module.
    fn add(&mut self, path: &[String]) {
        let mut from = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self") => self.module.clone(),
            Some("super") => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            _ => return,
        };
        for name in &path[1..] {
            match name.as_str() {
                "super" => drop(from.pop()),
                name => from.push(name.to_owned()),
            }
        }
        self.named.insert(from);
    }

    fn tree(&mut self, tree: &syn::UseTree, before: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before);
                before.pop();
            }
            syn::UseTree::Name(syn::UseName { ident }) => self.leaf(ident, before),
            syn::UseTree::Rename(syn::UseRename { ident, .. }) => self.leaf(ident, before),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.tree(tree, before));
            }
            syn::UseTree::Glob(_) => self.add(before),
        }
    }

    fn leaf(&mut self, name: &syn::Ident, before: &mut Vec<String>) {
        before.push(name.to_string());
        self.add(before);
        before.pop();
    }
}

impl<'a> Visit<'a> for Names {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !of_tests(&item.attrs) && item.content.is_some() {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !of_tests(&item.attrs) {
            self.tree(&item.tree, &mut Vec::new());
        }
    }

    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        if !of_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.add(&names);
        visit::visit_path(self, path);
    }
}

fn sources(folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let name = path.strip_prefix(root).unwrap().with_extension("");
        let mut module: Vec<_> = name
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        match module.last().map(String::as_str) {
            Some("mod") => drop(module.pop()),
            Some("lib") => module.clear(),
            // Files of unit tests.
            Some("tests") => continue,
            _ => {}
        }
        let text = fs::read_to_string(&path).unwrap();
        let file = syn::parse_file(&text).unwrap();
        let mut names = Names {
            module: module.clone(),
            named: BTreeSet::new(),
        };
        names.visit_file(&file);
        found.push(Source {
            module,
            named: names.named,
            text,
        });
    }
}

fn all_sources() -> Vec<Source> {
    let mut found = Vec::new();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    sources(Path::new(root), &mut found);
    found
}

#[test]
fn modules_name_only_what_lies_below_them() {
    let mut checked = 0;
    for source in all_sources() {
        let Some(module) = source.module.first() else {
            continue;
        };
        if module == "main" {
            continue;
        }
        let allowed = ALLOWED.iter().find(|(name, _)| name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{module} has no entry"));
        let others = source.named.iter().filter_map(|path| path.first());
        for other in others.filter(|other| *other != module) {
            if ALLOWED.iter().any(|(name, _)| name == other) {
                let path = source.module.join("::");
                assert!(
                    allowed.contains(&other.as_str()),
                    "{path} names {other}, which does not lie below {module}"
                );
                checked += 1;
            }
        }
        for (owned, owners) in OWNED {
            // A name of its own, not the end of another (`ort` in `transport`).
            let start = format!("{owned}::");
            let named = source.text.match_indices(&start).any(|(at, _)| {
                let before = source.text[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            });
            assert!(
                !named || owners.contains(&module.as_str()),
                "{module} names {owned}"
            );
        }
    }
    assert!(
        checked > 100,
        "{checked} imports: it looks at the wrong thing"
    );
}

/// For each folder, which of its modules name which.
fn graphs(sources: &[Source]) -> BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> {
    let modules: BTreeSet<_> = sources.iter().map(|source| &source.module[..]).collect();
    // Where a folder's own file names what it gives on: `pub use a::B`, so that `super::B` is of `a`.
    let mut given_on = BTreeMap::new();
    for source in sources {
        let file = syn::parse_file(&source.text).unwrap();
        for item in &file.items {
            let syn::Item::Use(item) = item else { continue };
            let mut names = Names {
                module: Vec::new(),
                named: BTreeSet::new(),
            };
            // As if it were named from here.
            let mut before = vec!["self".to_owned()];
            names.tree(&item.tree, &mut before);
            for mut path in names.named {
                path.retain(|name| name != "self");
                let child = [&source.module[..], &path[..path.len().min(1)]].concat();
                if let ([of, .., name], true) = (&path[..], modules.contains(&child[..])) {
                    given_on.insert((source.module.clone(), name.clone()), of.clone());
                }
            }
        }
    }
    let mut graphs = BTreeMap::new();
    for source in sources {
        for depth in 0..source.module.len() {
            let (folder, own) = (&source.module[..depth], &source.module[depth]);
            let graph: &mut BTreeMap<String, BTreeSet<String>> =
                graphs.entry(folder.to_vec()).or_default();
            let names = graph.entry(own.clone()).or_default();
            for path in &source.named {
                let Some(name) = path.get(depth).filter(|_| path.starts_with(folder)) else {
                    continue;
                };
                let child = [folder, std::slice::from_ref(name)].concat();
                let of = match modules.contains(&child[..]) {
                    true => Some(name),
                    false => given_on.get(&(folder.to_vec(), name.clone())),
                };
                names.extend(of.filter(|of| *of != own).cloned());
            }
        }
    }
    graphs
}

/// A way from `from` back to itself.
fn circle(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> Option<Vec<String>> {
    let (mut ways, mut seen) = (vec![vec![from.to_owned()]], BTreeSet::new());
    while let Some(way) = ways.pop() {
        for next in graph.get(way.last()?).into_iter().flatten() {
            let longer = [&way[..], std::slice::from_ref(next)].concat();
            if next == from {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn no_folder_has_a_circle() {
    let graphs = graphs(&all_sources());
    assert!(graphs.len() > 10, "it found almost no folder");
    let edges: usize = graphs
        .values()
        .flat_map(|g| g.values())
        .map(BTreeSet::len)
        .sum();
    assert!(edges > 200, "{edges} imports: it looks at the wrong thing");
    for (folder, graph) in &graphs {
        for module in graph.keys() {
            let circle = circle(graph, module).map(|way| way.join(" -> "));
            assert_eq!(circle, None, "in {:?}", folder.join("::"));
        }
    }
}

#[test]
fn a_circle_is_found() {
    let file = |module: &[&str], text: &str| {
        let module: Vec<_> = module.iter().map(|name| (*name).to_owned()).collect();
        let mut names = Names {
            module: module.clone(),
            named: BTreeSet::new(),
        };
        names.visit_file(&syn::parse_file(text).unwrap());
        Source {
            module,
            named: names.named,
            text: text.to_owned(),
        }
    };
    let sources = [
        file(&["x"], "mod a; mod b; mod c; pub use b::{B, More};"),
        file(&["x", "a"], "use super::{More, c::C};"),
        file(&["x", "b"], "fn f() { super::c::g() }"),
        file(
            &["x", "c"],
            "#[cfg(test)] mod tests { use super::super::a::A; }",
        ),
    ];
    let graphs = graphs(&sources);
    let graph = &graphs[&vec!["x".to_owned()]];
    let of = |name: &str| graph[name].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        (of("a"), of("b"), of("c")),
        (vec!["b", "c"], vec!["c"], vec![])
    );
    assert_eq!(circle(graph, "a"), None);
    let mut knotted = graph.clone();
    knotted.insert("c".to_owned(), ["a".to_owned()].into());
    assert!(circle(&knotted, "a").is_some());
}
