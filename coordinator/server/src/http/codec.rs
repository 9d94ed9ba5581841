//! Calls without generated types: messages as the descriptors describe them.

use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use std::sync::{Arc, Mutex};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Reads answers of one kind. What it is given to write may be an error: then the service gets no message, and the error is kept
/// for whoever asked.
#[derive(Debug, Clone)]
pub struct Dynamic {
    answer: MessageDescriptor,
    unreadable: Arc<Mutex<Option<Status>>>,
}

impl Dynamic {
    /// For answers of this kind.
    pub fn new(answer: MessageDescriptor) -> Self {
        Self { answer, unreadable: Arc::default() }
    }

    /// Why there was no message, if there was none.
    pub fn unreadable(&self) -> Option<Status> {
        self.unreadable.lock().expect("no holder panics").take()
    }
}

impl Codec for Dynamic {
    type Encode = Result<DynamicMessage, Status>;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = Result<DynamicMessage, Status>;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let message = item.inspect_err(|status| {
            *self.unreadable.lock().expect("no holder panics") = Some(status.clone());
        })?;
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.answer.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
