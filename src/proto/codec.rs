//! The codec of every service: messages of the protocol, held against their bounds before they are made.

use std::{collections::HashMap, marker::PhantomData};

use bytes::Buf;
use prost::{Message, Name};
use tonic::{
    Code, Status,
    codec::{DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstEncoder};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    ERROR_DOMAIN,
    bounds::{self, Content, Request, TooMany},
};

/// Entries and copied bytes of a message that take a millisecond or so to make (some 30 ns an entry, 4 GB/s).
const SLOW: Content = Content {
    entries: 16 << 10,
    copied: 1 << 20,
    others: 16 << 10,
};

/// As [`ProstCodec`], and no message with more entries than it may have is made.
#[derive(Debug, Clone)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Bounded<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Bounded(PhantomData, bounds::request(U::PACKAGE, U::NAME))
    }
}

/// Decodes what holds its bounds: messages that callers send. Those that servers send are the caller's own matter.
#[derive(Debug)]
pub struct Bounded<U>(PhantomData<U>, Option<Request>);

impl<U: Message + Name + Default> Decoder for Bounded<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let Some(request) = self.1 else {
            let made = U::decode(buffer).map_err(|error| Status::internal(error.to_string()));
            return made.map(Some);
        };
        let content = bounds::check(request, buffer.chunk()).map_err(|excess| too_many(&excess))?;
        let slow = content.entries >= SLOW.entries
            || content.copied >= SLOW.copied
            || content.others >= SLOW.others;
        let decode = |buffer: &mut DecodeBuf<'_>| {
            U::decode(buffer).map_err(|error| {
                let message = format!("the message is no {}: {error}", U::NAME);
                let metadata = HashMap::from([("field".to_owned(), "request".to_owned())]);
                let mut details =
                    ErrorDetails::with_error_info("INVALID_ARGUMENT", ERROR_DOMAIN, metadata);
                details.add_bad_request_violation("request", error.to_string());
                Status::with_error_details(Code::InvalidArgument, message, details)
            })
        };
        // The thread goes on with this message alone; its other calls move to another one.
        let made = match slow && can_move() {
            true => tokio::task::block_in_place(|| decode(buffer)),
            false => decode(buffer),
        };
        made.map(Some)
    }
}

/// Whether there is another thread to move to.
fn can_move() -> bool {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    flavor.is_ok_and(|flavor| flavor == RuntimeFlavor::MultiThread)
}

fn too_many(excess: &TooMany) -> Status {
    let description = format!(
        "has more than {} entries, which is the limit for one {}",
        excess.limit, excess.message
    );
    let message = format!("{}: {description}", excess.field);
    let told = [
        ("field", excess.field.to_owned()),
        ("limit", excess.limit.to_string()),
        ("message", excess.message.to_owned()),
    ];
    let metadata = HashMap::from(told.map(|(name, value)| (name.to_owned(), value)));
    let mut details = ErrorDetails::new();
    details
        .add_bad_request_violation(excess.field, description)
        .set_error_info("LIMIT_EXCEEDED", ERROR_DOMAIN, metadata);
    Status::with_error_details(Code::InvalidArgument, message, details)
}
