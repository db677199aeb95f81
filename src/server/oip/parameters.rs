//! Parameters of a call.

use std::{collections::HashMap, time::Duration};

use super::Model;
use crate::{
    engine::{Options, Priority},
    error::{Error, Result},
    proto::inference::{InferParameter, infer_parameter::ParameterChoice},
    server::{MAX_DETECTIONS, MAX_TOP_K},
    task::Ask,
};

/// What a call's parameters ask for.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) options: Options,
    pub(super) priority: Priority,
    /// How long the caller waits.
    pub(super) timeout: Option<Duration>,
    /// Input `[height, width]` of the backbone.
    height: Option<u32>,
    width: Option<u32>,
}

impl Parameters {
    /// Reads the parameters of a call of `model`.
    ///
    /// # Errors
    /// One that is unknown, of another type, out of range or without meaning for the model.
    pub(super) fn read(from: &HashMap<String, InferParameter>, model: &Model) -> Result<Self> {
        let mut out = Self::default();
        let asks = model.task().map(|task| task.spec().asks);
        let may = |ask: Ask| asks.is_some_and(|asks| asks.contains(&ask));
        // In the order of names: which of several errors is told does not change from call to call.
        let mut names: Vec<_> = from.keys().collect();
        names.sort();
        for name in names {
            let field = format!("parameters[{}]", shown(name));
            let value = Value {
                choice: from.get(name).and_then(|p| p.parameter_choice.as_ref()),
                field: &field,
            };
            match name.as_str() {
                "priority" => out.priority = value.priority()?,
                "timeout" => out.timeout = value.timeout()?,
                "score_threshold" if may(Ask::ScoreThreshold) => {
                    out.options.score_threshold = Some(value.fraction()?);
                }
                "max_detections" if may(Ask::MaxDetections) => {
                    out.options.max_detections = Some(value.count(MAX_DETECTIONS)? as usize);
                }
                "top_k" if may(Ask::TopK) => {
                    out.options.top_k = Some(value.count(MAX_TOP_K)? as usize);
                }
                "height" if asks.is_none() => out.height = Some(value.count(8192)?),
                "width" if asks.is_none() => out.width = Some(value.count(8192)?),
                // Clients set these unasked: one is for the protocol's HTTP side, one for answers in several parts.
                "binary_data_output" | "triton_enable_empty_final_response" => {}
                "score_threshold" | "max_detections" | "top_k" | "height" | "width" => {
                    let message = format!("has no meaning for {}", model.kind());
                    return Err(Error::invalid(field, message));
                }
                _ => return Err(Error::invalid(field, "is not a parameter of this server")),
            }
        }
        Ok(out)
    }

    /// The input size asked for, among the backbone's `sizes`; the first where none is.
    ///
    /// # Errors
    /// Another size.
    pub(super) fn size(&self, sizes: &[[u32; 2]]) -> Result<[u32; 2]> {
        let size = match (self.height, self.width) {
            (None, None) => sizes[0],
            (Some(height), Some(width)) => [height, width],
            (None, _) => return Err(Error::invalid("parameters[height]", "is missing")),
            (_, None) => return Err(Error::invalid("parameters[width]", "is missing")),
        };
        if sizes.contains(&size) {
            return Ok(size);
        }
        let message = format!("{size:?} is not among the backbone's sizes {sizes:?}");
        Err(Error::invalid("parameters[height]", message))
    }
}

/// A name from outside, for messages.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// One parameter.
pub(super) struct Value<'a> {
    pub(super) choice: Option<&'a ParameterChoice>,
    pub(super) field: &'a str,
}

impl Value<'_> {
    fn wrong(&self, expected: &str) -> Error {
        let got = match self.choice {
            None => "nothing".to_owned(),
            Some(ParameterChoice::BoolParam(v)) => v.to_string(),
            Some(ParameterChoice::Int64Param(v)) => v.to_string(),
            Some(ParameterChoice::Uint64Param(v)) => v.to_string(),
            Some(ParameterChoice::DoubleParam(v)) => v.to_string(),
            Some(ParameterChoice::StringParam(v)) => format!("{:?}", shown(v)),
        };
        Error::invalid(self.field, format!("is {got}, but must be {expected}"))
    }

    /// A whole number from 1 to `most`.
    pub(super) fn count(&self, most: u32) -> Result<u32> {
        let value = match self.choice {
            Some(&ParameterChoice::Int64Param(v)) => u64::try_from(v).ok(),
            Some(&ParameterChoice::Uint64Param(v)) => Some(v),
            _ => None,
        };
        value
            .and_then(|v| u32::try_from(v).ok())
            .filter(|v| (1..=most).contains(v))
            .ok_or_else(|| self.wrong(&format!("a whole number from 1 to {most}")))
    }

    fn fraction(&self) -> Result<f32> {
        let value = match self.choice {
            Some(&ParameterChoice::DoubleParam(v)) => Some(v),
            Some(&ParameterChoice::Int64Param(v @ 0..=1)) => Some(v as f64),
            // Triton's clients have no other way for numbers with a fraction, at some versions.
            Some(ParameterChoice::StringParam(text)) => text.parse().ok(),
            _ => None,
        };
        value
            .filter(|v| (0.0..=1.0).contains(v))
            .map(|v| v as f32)
            .ok_or_else(|| self.wrong("a number from 0 to 1"))
    }

    /// By name, or by the number that Triton's clients send: 1 is the most urgent, 0 the default.
    fn priority(&self) -> Result<Priority> {
        let number = match self.choice {
            Some(&ParameterChoice::Uint64Param(v)) => Some(v),
            Some(&ParameterChoice::Int64Param(v)) => u64::try_from(v).ok(),
            Some(ParameterChoice::StringParam(name)) => match name.as_str() {
                "high" => Some(1),
                "normal" => Some(2),
                "background" => Some(3),
                _ => None,
            },
            _ => None,
        };
        match number {
            Some(0 | 2) => Ok(Priority::Normal),
            Some(1) => Ok(Priority::High),
            Some(3) => Ok(Priority::Background),
            _ => Err(self.wrong("high (1), normal (2 or 0) or background (3)")),
        }
    }

    /// Microseconds; 0 for none.
    fn timeout(&self) -> Result<Option<Duration>> {
        let micros = match self.choice {
            Some(&ParameterChoice::Int64Param(v)) => u64::try_from(v).ok(),
            Some(&ParameterChoice::Uint64Param(v)) => Some(v),
            _ => None,
        };
        match micros {
            Some(0) => Ok(None),
            Some(micros) => Ok(Some(Duration::from_micros(micros))),
            None => Err(self.wrong("a whole number of microseconds")),
        }
    }
}
