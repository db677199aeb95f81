//! Several inputs in one call: each is let in and fails by itself, and the answer has them in their order.

use tokio::task::JoinSet;
use tonic::Request;

use super::{
    status::part,
    vision::{How, Input, Vision},
};
use crate::{
    error::{Error, Kind, Result},
    proto::{self, batch_analyze_item, batch_analyze_result::Outcome},
};

/// Most items of one call.
const MOST: usize = 256;

impl Vision {
    pub(super) async fn batch_inner(
        &self,
        request: Request<proto::BatchAnalyzeRequest>,
    ) -> Result<proto::BatchAnalyzeResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let request = request.into_inner();
        let how = How::read(
            request.detection.as_ref(),
            request.segmentation,
            request.classification.as_ref(),
        )?;
        // What is let in together must find its places at a door that others use too.
        let most = MOST.min(self.engine.config().admission.images / 2).max(1);
        let (items, heads) = (request.items, request.heads);
        if items.is_empty() {
            return Err(Error::invalid("items", "has no item"));
        }
        if items.len() > most {
            let error = Error::new(Kind::LimitExceeded, format!("has more than {most} items"));
            let error = error.at("items");
            return Err(error.with("value", items.len()).with("limit", most));
        }
        // Dropped with the call: what nobody waits for any more is not begun.
        let mut running = JoinSet::new();
        let count = items.len();
        for (index, item) in items.into_iter().enumerate() {
            let (vision, call, heads) = (self.clone(), call.clone(), heads.clone());
            running.spawn(async move {
                let prefix = format!("items[{index}].");
                let input = match item.input {
                    Some(batch_analyze_item::Input::Image(image)) => Input::Image(image),
                    Some(batch_analyze_item::Input::Clip(clip)) => Input::Clip(clip),
                    None => {
                        let field = format!("items[{index}].input");
                        let error = Error::invalid(field, "is missing: set image or clip");
                        return (index, Err(error));
                    }
                };
                let done = vision.analyze_one(call, input, &prefix, &heads, how).await;
                (index, done)
            });
        }
        let mut done: Vec<Option<Result<_>>> = Vec::new();
        done.resize_with(count, || None);
        while let Some(joined) = running.join_next().await {
            let (index, one) =
                joined.map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
            done[index] = Some(one);
        }
        let lost = || Err(Error::new(Kind::Internal, "an item got no answer"));
        let done: Vec<_> = done
            .into_iter()
            .map(|one| one.unwrap_or_else(lost))
            .collect();
        // A caller that tries again as its policy says must be told by the call.
        if let Some(error) = turned_away(&done) {
            return Err(error);
        }
        let result = |one: Result<proto::AnalyzeResponse>| proto::BatchAnalyzeResult {
            outcome: Some(match one {
                Ok(response) => Outcome::Response(response),
                Err(error) => Outcome::Error(part(&error)),
            }),
        };
        Ok(proto::BatchAnalyzeResponse {
            results: done.into_iter().map(result).collect(),
        })
    }
}

/// The first error, if the server was too full for every item.
fn turned_away(done: &[Result<proto::AnalyzeResponse>]) -> Option<Error> {
    let full = |one: &Result<_>| {
        let error = one.as_ref().err();
        error.is_some_and(|error: &Error| {
            matches!(
                error.kind(),
                Kind::Overloaded | Kind::RateLimited | Kind::Unavailable
            )
        })
    };
    let first = done.first()?.as_ref().err()?;
    done.iter().all(full).then(|| first.clone())
}
