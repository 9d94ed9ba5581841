//! Protobuf on the wire, with one difference to tonic's own codec: bytes that are no message are the caller's mistake.
//!
//! tonic calls them INTERNAL, which says that the server is broken. Here they are INVALID_ARGUMENT with a reason, as every
//! other mistake in a request. Nothing about the encoding is changed.

use crate::reason::{DOMAIN, Reason};
use prost::Message;
use std::{collections::HashMap, marker::PhantomData};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;
use tonic_types::{ErrorDetails, StatusExt as _};

/// What the generated clients and servers speak.
#[derive(Debug, Clone)]
pub struct Protobuf<T, U>(PhantomData<(T, U)>);

/// Reads messages.
#[derive(Debug, Clone)]
pub struct ProtobufDecoder<U>(PhantomData<U>);

impl<T, U> Default for Protobuf<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Protobuf<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProtobufDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProtobufDecoder(PhantomData)
    }
}

impl<U: Message + Default> Decoder for ProtobufDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        Message::decode(buf).map(Some).map_err(|error| {
            let details = ErrorDetails::with_error_info(
                Reason::MessageMalformed.name(),
                DOMAIN,
                HashMap::<String, String>::new(),
            );
            let message = format!("the bytes are no message of this call: {error}");
            Status::with_error_details(Reason::MessageMalformed.code(), message, details)
        })
    }
}
