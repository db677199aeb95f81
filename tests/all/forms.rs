//! Answers in the form that a caller asks for: maps narrower, pooled, in pieces; several inputs in one call.

use frostline::{
    client::{encoded, reason as part_reason},
    engine::{AdmissionLimits, EngineConfig},
    proto::{
        self, BatchAnalyzeItem, DataType, FeaturePooling, batch_analyze_item::Input,
        batch_analyze_result::Outcome,
    },
};
use half::f16;
use tonic::Code;

use crate::support::{Running, one_lane, png, reason};

fn floats(map: &proto::Tensor) -> Vec<f32> {
    let fours = map.data.chunks_exact(4);
    fours
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn halves(map: &proto::Tensor) -> Vec<f32> {
    let pairs = map.data.chunks_exact(2);
    pairs
        .map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32())
        .collect()
}

fn asked() -> proto::ExtractFeaturesRequest {
    proto::ExtractFeaturesRequest {
        image: Some(encoded(png(96, 64, 3))),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_come_narrower_pooled_and_in_pieces() {
    let server = Running::start(one_lane()).await;
    let mut vision = server.client().await.vision;
    let whole = vision.extract_features(asked()).await.unwrap().into_inner();
    let bytes: usize = whole.maps.iter().map(|map| map.data.len()).sum();
    assert!(bytes < 4 << 20, "the default answer is for stock clients");

    let mut request = asked();
    request.set_data_type(DataType::Float16);
    let narrow = vision
        .extract_features(request.clone())
        .await
        .unwrap()
        .into_inner();
    for (map, wide) in narrow.maps.iter().zip(&whole.maps) {
        assert_eq!((&map.name, &map.shape), (&wide.name, &wide.shape));
        assert_eq!(map.data_type(), DataType::Float16);
        assert_eq!(map.data.len() * 2, wide.data.len());
        for (got, want) in halves(map).into_iter().zip(floats(wide)) {
            assert_eq!(got, f16::from_f32(want).to_f32());
        }
    }
    request.set_pooling(FeaturePooling::Mean);
    request.set_data_type(DataType::Unspecified);
    let pooled = vision
        .extract_features(request.clone())
        .await
        .unwrap()
        .into_inner();
    for (map, wide) in pooled.maps.iter().zip(&whole.maps) {
        let channels = wide.shape[0] as usize;
        assert_eq!(map.shape, [wide.shape[0]]);
        let (numbers, cells) = (floats(wide), wide.data.len() / 4 / channels);
        for (got, channel) in floats(map).into_iter().zip(numbers.chunks(cells)) {
            let sum: f64 = channel.iter().map(|n| f64::from(*n)).sum();
            assert!((f64::from(got) - sum / cells as f64).abs() < 1e-6);
        }
    }

    // Over what the caller takes: refused before anything runs, with the ways out; the stream has no such bound.
    let mut request = asked();
    request.max_bytes = Some(u32::try_from(bytes).unwrap() - 1);
    let before = server.engine.counters().backbone_batches;
    let refused = vision.extract_features(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(reason(&refused), "LIMIT_EXCEEDED");
    for way in ["map_names", "FLOAT16", "pooling", "StreamFeatures"] {
        assert!(refused.message().contains(way), "{refused}");
    }
    assert_eq!(server.engine.counters().backbone_batches, before);
    let request = proto::StreamFeaturesRequest {
        features_request: Some(request),
    };
    let mut pieces = vision.stream_features(request).await.unwrap().into_inner();
    let mut maps: Vec<(String, Vec<u8>)> = Vec::new();
    let mut last = None;
    while let Some(message) = pieces.message().await.unwrap() {
        assert!(last.is_none(), "something came after the last message");
        let Some(piece) = message.piece else {
            last = Some(message);
            continue;
        };
        if message.offset == 0 {
            maps.push((piece.name.clone(), Vec::new()));
        }
        let (name, data) = maps.last_mut().unwrap();
        assert_eq!((&*name, data.len()), (&piece.name, message.offset as usize));
        assert!(piece.data.len() <= 1 << 20);
        data.extend(&piece.data);
    }
    let last = last.unwrap();
    assert!(last.provenance.is_some() && last.image_size == whole.image_size);
    let wanted: Vec<_> = whole
        .maps
        .iter()
        .map(|m| (m.name.clone(), m.data.to_vec()))
        .collect();
    assert_eq!(maps, wanted);

    for (number, field) in [(DataType::Int64 as i32, "data_type"), (77, "data_type")] {
        let request = proto::ExtractFeaturesRequest {
            data_type: number,
            ..asked()
        };
        let refused = vision.extract_features(request).await.unwrap_err();
        assert!(refused.message().starts_with(field), "{refused}");
    }
    let request = proto::ExtractFeaturesRequest {
        pooling: 5,
        ..asked()
    };
    let refused = vision.extract_features(request).await.unwrap_err();
    assert!(refused.message().starts_with("pooling"), "{refused}");
    server.settled().await;
    server.stop().await;
}

fn item(data: bytes::Bytes) -> BatchAnalyzeItem {
    BatchAnalyzeItem {
        input: Some(Input::Image(encoded(data))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_keeps_its_order_and_fails_item_by_item() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let mut vision = client.vision.clone();
    let mut items: Vec<_> = (1..6).map(|seed| item(png(64 + seed, 64, seed))).collect();
    items[2] = item(bytes::Bytes::from_static(b"no image"));
    items[4].input = None;
    let request = proto::BatchAnalyzeRequest {
        items,
        heads: vec!["scene".to_owned()],
        ..Default::default()
    };
    let answer = vision.batch_analyze(request).await.unwrap().into_inner();
    assert_eq!(answer.results.len(), 5);
    for (index, result) in (1..).zip(&answer.results) {
        match result.outcome.as_ref().unwrap() {
            Outcome::Response(one) => {
                let mut client = client.clone();
                let alone = client
                    .analyze_image(png(64 + index, 64, index), &["scene"])
                    .await;
                let alone = alone.unwrap();
                assert_eq!(one.image_size, alone.image_size);
                assert_eq!(one.image_size.unwrap().width, 64 + index);
                assert_eq!(one.results, alone.results);
            }
            Outcome::Error(error) if index == 3 => {
                assert_eq!(part_reason(error), "INVALID_IMAGE");
                assert!(
                    error.message.starts_with("items[2].image.encoded"),
                    "{error:?}"
                );
            }
            Outcome::Error(error) => {
                assert_eq!(index, 5);
                assert!(error.message.starts_with("items[4].input"), "{error:?}");
            }
        }
    }
    let refused = vision
        .batch_analyze(proto::BatchAnalyzeRequest::default())
        .await
        .unwrap_err();
    assert!(refused.message().starts_with("items"), "{refused}");
    let request = proto::BatchAnalyzeRequest {
        items: vec![item(png(8, 8, 1))],
        heads: vec!["nothing".to_owned()],
        ..Default::default()
    };
    // The same for each: told by each.
    let answer = vision.batch_analyze(request).await.unwrap().into_inner();
    let Some(Outcome::Error(error)) = &answer.results[0].outcome else {
        panic!("{answer:?}")
    };
    assert_eq!(error.code, Code::NotFound as i32);
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_let_in_as_so_many_images() {
    let config = EngineConfig {
        admission: AdmissionLimits {
            images: 8,
            ..AdmissionLimits::default()
        },
        ..one_lane()
    };
    let server = Running::start(config).await;
    let mut vision = server.client().await.vision;
    let request = |count: u32| proto::BatchAnalyzeRequest {
        items: (0..count).map(|seed| item(png(32, 32, seed))).collect(),
        heads: vec!["scene".to_owned()],
        ..Default::default()
    };
    let refused = vision.batch_analyze(request(5)).await.unwrap_err();
    assert_eq!(reason(&refused), "LIMIT_EXCEEDED");
    let answer = vision.batch_analyze(request(4)).await.unwrap().into_inner();
    assert!(
        answer
            .results
            .iter()
            .all(|r| matches!(r.outcome, Some(Outcome::Response(_))))
    );
    assert_eq!(server.engine.counters().backbone_rows, 4);
    server.settled().await;
    server.stop().await;
}
