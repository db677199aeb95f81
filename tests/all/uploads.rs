//! How heads come: by link, by rename and in place; and what is none though it looks like one.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use frostline::{engine::Engine, metrics::Sample, proto, repository::Repository};
use tonic::Code;

use crate::{
    bad_heads::{LIMIT, failed, serve},
    common::graphs::TOUCHY,
    lifecycle::{Site, ask, current_of, until, write},
};

/// Lets `link` lead to `target` from one moment to the next.
fn flip(link: &Path, target: &str) {
    let new = link.with_file_name(format!(".new-{target}"));
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// How often the head was loaded while serving.
fn loads(engine: &Engine, head: &str) -> String {
    let text = engine.config().metrics.render(Sample::default()).unwrap();
    let series = format!("frostline_head_loads_total{{head=\"{head}\",result=\"loaded\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value
        .unwrap_or_else(|| panic!("no {series}in {text}"))
        .to_owned()
}

/// As git-sync leaves a repository: a link to a tree of its own for each commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_behind_a_link_is_followed_when_the_link_flips() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("current");
    let tree = |name: &str, version| {
        let root = folder.path().join(name);
        fs::create_dir(&root).unwrap();
        let backbone = TOUCHY.write(&root);
        write(&root, &backbone, "mean", version);
        write(&root, &backbone, "same", 7);
        root
    };
    let first = tree("tree-1", 1);
    flip(&link, "tree-1");
    let server = serve(&link, &[]).await;
    let client = &mut server.client().await;
    server.engine.watch(Duration::from_millis(10)).unwrap();
    assert_eq!(ask(client, "mean", 10).await.unwrap(), 1);
    tree("tree-2", 2);
    flip(&link, "tree-2");
    fs::remove_dir_all(first).unwrap();
    until(client, "mean", Some(2)).await;
    assert_eq!(ask(client, "same", 10).await.unwrap(), 7);
    assert_eq!(loads(&server.engine, "same"), "0", "it is the same head");
    // By call as well.
    tree("tree-3", 3);
    flip(&link, "tree-3");
    until(client, "mean", Some(3)).await;

    // Where the link leads nowhere nothing was taken away.
    fs::remove_file(&link).unwrap();
    let request = proto::LoadHeadRequest {
        name: "mean".to_owned(),
    };
    client.model.load_head(request).await.unwrap_err();
    for _ in 0..100 {
        assert_eq!(ask(client, "mean", 10).await.unwrap(), 3);
    }
    flip(&link, "tree-2");
    until(client, "mean", Some(2)).await;
    server.stop().await;
}

/// As Kubernetes mounts a ConfigMap or a Secret: files that are links through `..data`.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_whose_files_are_links_is_followed() {
    let site = Site::new().await;
    let head = site.folder.path().join("heads/mounted");
    fs::create_dir(&head).unwrap();
    let version = |number: u32| {
        let made = tempfile::tempdir().unwrap();
        let backbone = TOUCHY.write(made.path());
        write(made.path(), &backbone, "mounted", number);
        let folder = format!("..{number}");
        fs::create_dir(head.join(&folder)).unwrap();
        for file in ["head.toml", "head.onnx"] {
            let from = made.path().join("heads/mounted").join(file);
            fs::copy(from, head.join(&folder).join(file)).unwrap();
        }
        flip(&head.join("..data"), &folder);
    };
    version(1);
    for file in ["head.toml", "head.onnx"] {
        symlink(format!("..data/{file}"), head.join(file)).unwrap();
    }
    let client = &mut site.server.client().await;
    site.server.engine.watch(Duration::from_millis(10)).unwrap();
    until(client, "mounted", Some(1)).await;
    version(2);
    fs::remove_dir_all(head.join("..1")).unwrap();
    until(client, "mounted", Some(2)).await;
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_place_is_taken_when_it_is_whole() {
    let site = Site::new().await;
    let head = site.folder.path().join("heads/mean");
    let made = tempfile::tempdir().unwrap();
    let backbone = TOUCHY.write(made.path());
    let client = &mut site.server.client().await;
    site.server.engine.watch(Duration::from_millis(10)).unwrap();
    for (version, order) in [
        (2, ["head.toml", "head.onnx"]),
        (3, ["head.onnx", "head.toml"]),
    ] {
        write(made.path(), &backbone, "mean", version);
        for file in order {
            // Half of it is there until the server has looked at it.
            let whole = fs::read(made.path().join("heads/mean").join(file)).unwrap();
            fs::write(head.join(file), &whole[..whole.len() / 2]).unwrap();
            let looked = async {
                while site.server.engine.fault("mean").is_none() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(LIMIT, looked)
                .await
                .expect("half a file is a head");
            assert_eq!(ask(client, "mean", 10).await.unwrap(), version - 1);
            fs::write(head.join(file), whole).unwrap();
        }
        until(client, "mean", Some(version)).await;
    }
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_was_put_aside_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let backbone = TOUCHY.write(root);
    write(root, &backbone, "mean", 1);
    let aside = |name: &str| {
        let (from, to) = (root.join("heads/mean"), root.join("heads").join(name));
        fs::create_dir(&to).unwrap();
        for file in ["head.toml", "head.onnx"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    };
    aside("mean.old");
    let names = |repository: &Repository| -> Vec<String> {
        let heads = repository.heads.iter();
        heads.map(|head| head.manifest.name.clone()).collect()
    };
    assert_eq!(
        names(&Repository::open(root).unwrap()),
        ["mean"],
        "even where bad heads are refused"
    );
    let server = serve(root, &[]).await;
    let client = &mut server.client().await;
    server.engine.watch(Duration::from_millis(10)).unwrap();
    aside("mean.older");
    write(root, &backbone, "mean", 2);
    until(client, "mean", Some(2)).await;
    assert!(failed(client).await.is_empty());
    assert_eq!(server.engine.repository_heads().unwrap(), ["mean"]);
    for name in ["mean.old", "mean.older"] {
        assert_eq!(current_of(&server, name), None);
        let name = name.to_owned();
        let status = client
            .model
            .load_head(proto::LoadHeadRequest { name })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains("\"mean\""), "{status:?}");
    }
    // Of a head that serves another name is a mistake.
    let manifest: PathBuf = root.join("heads/mean/head.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(
        &manifest,
        text.replace("name = \"mean\"", "name = \"maen\""),
    )
    .unwrap();
    let told = async {
        while server.engine.fault("mean").is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, told).await.unwrap();
    assert_eq!(ask(client, "mean", 10).await.unwrap(), 2);
    server.stop().await;
}
