//! What a server says that it has.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn tells_what_it_has() {
    let server = Running::start(one_lane()).await;
    let mut client = inference(&server).await;
    let ready = client.server_ready(ServerReadyRequest {}).await.unwrap();
    assert!(ready.into_inner().ready);
    let about = client.server_metadata(ServerMetadataRequest {}).await;
    let about = about.unwrap().into_inner();
    assert_eq!(about.name, "frostline");
    assert!(about.extensions.contains(&"model_repository".to_owned()));

    let index = client
        .repository_index(RepositoryIndexRequest::default())
        .await
        .unwrap()
        .into_inner()
        .models;
    let names: Vec<_> = index.iter().map(|model| model.name.as_str()).collect();
    let backbone = server.engine.backbone().name.clone();
    assert_eq!(names, [backbone.as_str(), "motion", "objects", "scene"]);
    assert!(index.iter().all(|model| model.state == "READY"));

    for model in &index {
        let request = |version: &str| ModelReadyRequest {
            name: model.name.clone(),
            version: version.to_owned(),
        };
        for (version, expected) in [("", true), (model.version.as_str(), true), ("99", false)] {
            let ready = client.model_ready(request(version)).await.unwrap();
            assert_eq!(
                ready.into_inner().ready,
                expected,
                "{} {version}",
                model.name
            );
        }
        let about = client
            .model_metadata(ModelMetadataRequest {
                name: model.name.clone(),
                version: String::new(),
            })
            .await
            .unwrap()
            .into_inner();
        let clip = model.name == "motion";
        assert_eq!(about.inputs[0].name, if clip { "clip" } else { "image" });
        // What it says it gives is what it gives.
        let files = vec![sample("clip-1/frame-0.jpg"); if clip { 8 } else { 1 }];
        let shape: &[i64] = if clip { &[1, 8] } else { &[1] };
        let mut request = typed(&model.name, &about.inputs[0].name, shape, &files);
        let all: Vec<_> = about.outputs.iter().map(|o| o.name.as_str()).collect();
        request.outputs = wanted(&all);
        let answer = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!(answer.outputs.len(), about.outputs.len());
        for (given, told) in answer.outputs.iter().zip(&about.outputs) {
            assert_eq!((&given.name, &given.datatype), (&told.name, &told.datatype));
            assert_eq!(given.shape.len(), told.shape.len(), "{}", told.name);
            for (given, told) in given.shape.iter().zip(&told.shape) {
                assert!(*told == -1 || given == told, "{given} is not {told}");
            }
        }
    }
    let unknown = ModelReadyRequest {
        name: "nobody".to_owned(),
        ..Default::default()
    };
    assert!(
        !client
            .model_ready(unknown)
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    server.stop().await;
}
