//! A lane's own end.

use super::*;
use crate::{
    backend::Runtime,
    engine::{Engine, EngineConfig, Request, Source},
    repository::Repository,
};

#[tokio::test]
async fn a_lane_that_panics_ends_the_engine_and_tells_everyone() {
    let runtime = Runtime::load(None).expect("the library is there");
    let repository = Repository::embedded().expect("the demo models are sound");
    let config = EngineConfig {
        lanes: 1,
        ..EngineConfig::default()
    };
    let engine = Engine::start(&runtime, &repository, config).expect("they load");
    let (device, cpu) = (true, true);
    let role = Role { device, cpu };
    let request = || Request {
        images: vec![(
            Source::Raw {
                width: 128,
                height: 128,
                rgb: vec![9; 128 * 128 * 3].into(),
            },
            "image".to_owned(),
        )],
        heads: engine.head("objects").into_iter().collect(),
        ..Request::default()
    };
    assert!(engine.run(request()).await.is_ok());
    let lane = Thread {
        role,
        lane: 0,
        index: 0,
    };
    assert!(!lane.guarded(&engine.shared, || panic!("the test's own")));
    assert_eq!(engine.failed().await.kind(), Kind::Unavailable);
    let error = engine
        .run(request())
        .await
        .map(|_| ())
        .expect_err("it is over");
    assert_eq!(error.kind(), Kind::Unavailable);
    // The lane lets go of the first image just after its answer was sent.
    let idle = async {
        while engine.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let limit = Duration::from_secs(20);
    assert!(
        tokio::time::timeout(limit, idle).await.is_ok(),
        "a place leaked"
    );
}
