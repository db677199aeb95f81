//! `grpc.health.v1` for the server, its services and its heads; reflection.

use frostline::proto;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::{Running, one_lane};

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_its_services_and_its_heads_are_checked_by_name() {
    let server = Running::start(one_lane()).await;
    let mut health = HealthClient::new(server.channel().await);
    for name in [
        "",
        "frostline.v1.VisionService",
        "frostline.v1.ModelService",
        "frostline.head.objects",
        "frostline.head.scene",
    ] {
        let answer = health.check(of(name)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name}");
    }
    for name in [
        "frostline.head.nobody",
        "objects",
        "frostline.v2.VisionService",
    ] {
        let status = health.check(of(name)).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{name}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_follows_a_head_and_ends_with_the_drain() {
    let server = Running::start(one_lane()).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut client = server.client().await;
    let mut head = health
        .watch(of("frostline.head.scene"))
        .await
        .unwrap()
        .into_inner();
    let mut all = health.watch(of("")).await.unwrap().into_inner();
    let mut next = async || head.next().await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::Serving);
    assert_eq!(
        all.next().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    let name = || "scene".to_owned();
    client
        .model
        .unload_head(proto::UnloadHeadRequest { name: name() })
        .await
        .unwrap();
    assert_eq!(next().await, ServingStatus::ServiceUnknown);
    client
        .model
        .load_head(proto::LoadHeadRequest { name: name() })
        .await
        .unwrap();
    assert_eq!(next().await, ServingStatus::Serving);
    drop(client);
    let stopping = tokio::spawn(server.stop());
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(
        all.next().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );
    assert!(all.next().await.is_none(), "a watch holds up the drain");
    drop((head, all, health));
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_the_services_to_new_and_old_tools() {
    let server = Running::start(one_lane()).await;
    let channel = server.channel().await;
    let request = v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
        ..Default::default()
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .next()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(new) = answer else {
        panic!("{answer:?}")
    };
    let new: Vec<_> = new
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
        ..Default::default()
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .next()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(old) = answer
    else {
        panic!("{answer:?}")
    };
    let old: Vec<_> = old
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for names in [new, old] {
        for name in ["frostline.v1.VisionService", "frostline.v1.ModelService"] {
            assert!(
                names.iter().any(|n| n == name),
                "{name} is not in {names:?}"
            );
        }
    }
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_details_of_errors_are_found_by_reflection() {
    let server = Running::start(one_lane()).await;
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    for name in ["ErrorInfo", "BadRequest", "RetryInfo"] {
        let symbol = format!("google.rpc.{name}");
        let request = v1::ServerReflectionRequest {
            message_request: Some(
                v1::server_reflection_request::MessageRequest::FileContainingSymbol(symbol),
            ),
            ..Default::default()
        };
        let answers = client.server_reflection_info(tokio_stream::once(request));
        let answer = answers.await.unwrap().into_inner().next().await.unwrap();
        let answer = answer.unwrap().message_response.unwrap();
        let v1::server_reflection_response::MessageResponse::FileDescriptorResponse(found) = answer
        else {
            panic!("{name}: {answer:?}")
        };
        let file: prost_types::FileDescriptorProto =
            prost::Message::decode(found.file_descriptor_proto[0].as_slice()).unwrap();
        let messages: Vec<_> = file.message_type.iter().map(|m| m.name()).collect();
        assert!(messages.contains(&name), "{messages:?}");
    }
    drop(client);
    server.stop().await;
}
