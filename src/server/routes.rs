//! The services, and what their descriptors say of the methods.

use std::sync::Arc;

use prost::Message;
use tonic::{server::NamedService, service::Routes};
use tonic_health::pb::health_server::HealthServer;

use super::{ServerConfig, health, methods::Methods, model, oip, stream::Streams, vision};
use crate::{
    engine::Engine,
    proto::{
        FILE_DESCRIPTOR_SET, inference::grpc_inference_service_server::GrpcInferenceServiceServer,
        model_service_server::ModelServiceServer, vision_service_server::VisionServiceServer,
    },
};

/// The services that reflection tells of.
const DESCRIPTORS: [&[u8]; 3] = [
    FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    // What the details of an error are: tools look them up to show them.
    tonic_types::pb::FILE_DESCRIPTOR_SET,
];

/// Reflection's own.
const REFLECTIONS: [&[u8]; 2] = [
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// Every service, on `engine`.
pub(super) fn routes(engine: &Arc<Engine>, config: &ServerConfig) -> anyhow::Result<Routes> {
    let health = health::Checks::new(
        Arc::clone(engine),
        vec![
            VisionServiceServer::<vision::Vision>::NAME,
            ModelServiceServer::<model::Model>::NAME,
            GrpcInferenceServiceServer::<oip::Inference>::NAME,
        ],
        config.life.clone(),
    );
    let limit_in = config.max_request_bytes;
    let limit_out = config.max_response_bytes;
    let vision = VisionServiceServer::new(vision::Vision::new(
        Arc::clone(engine),
        config.default_deadline,
        Streams::new(config),
    ))
    .max_decoding_message_size(limit_in)
    .max_encoding_message_size(limit_out);
    let model = ModelServiceServer::new(model::Model::new(Arc::clone(engine)));
    let inference = GrpcInferenceServiceServer::new(oip::Inference::new(
        Arc::clone(engine),
        config.default_deadline,
        limit_out,
        config.life.clone(),
    ))
    .max_decoding_message_size(limit_in)
    .max_encoding_message_size(limit_out);
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure();
        DESCRIPTORS.iter().fold(builder, |builder, set| {
            builder.register_encoded_file_descriptor_set(set)
        })
    };
    Ok(Routes::new(vision)
        .add_service(model)
        .add_service(inference)
        .add_service(HealthServer::new(health))
        .add_service(reflection().build_v1()?)
        // For tools that have not followed the rename, such as ghz.
        .add_service(reflection().build_v1alpha()?)
        .prepare())
}

/// The methods of these services, and the paths of those whose caller sends many messages.
pub(super) fn methods() -> anyhow::Result<(Methods, Vec<String>)> {
    let all = [&DESCRIPTORS[..], &REFLECTIONS].concat();
    let mut streaming = Vec::new();
    for set in &all {
        streaming.extend(streaming_methods(set)?);
    }
    Ok((Methods::of(&all)?, streaming))
}

/// Paths of the methods in an encoded descriptor set whose caller sends many messages.
fn streaming_methods(set: &[u8]) -> anyhow::Result<Vec<String>> {
    let set = prost_types::FileDescriptorSet::decode(set)?;
    let mut paths = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let streaming = service.method.iter().filter(|m| m.client_streaming());
            paths.extend(streaming.map(|method| {
                let (package, service) = (file.package(), service.name());
                format!("/{package}.{service}/{}", method.name())
            }));
        }
    }
    Ok(paths)
}
