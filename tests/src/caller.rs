//! Speaks to one participant as the coordinator does.

use prost::Message as _;
use tcc_core::{Operation, Outcome, TransactionId};
use tcc_participant::wire::{read_outcome, write_call};
use tcc_proto::v1::{self, participant_service_client::ParticipantServiceClient};
use tonic::transport::Channel;

/// Asks a participant of this name.
#[derive(Clone)]
pub struct Caller {
    client: ParticipantServiceClient<Channel>,
    name: &'static str,
}

impl Caller {
    /// To the participant of this name at `http://HOST:PORT`.
    #[must_use]
    pub fn to(address: &str, name: &'static str) -> Self {
        let endpoint = Channel::from_shared(address.to_owned()).expect("an address");
        Self { client: ParticipantServiceClient::new(endpoint.connect_lazy()), name }
    }

    /// One operation on the only branch of a transaction.
    pub async fn ask(&self, operation: Operation, id: TransactionId, payload: &[u8]) -> Outcome {
        let branch = v1::TransactionBranch {
            participant: self.name.into(),
            payload: payload.into(),
            ..Default::default()
        };
        let on_maturity = v1::OnMaturity::Confirm.into();
        let descriptor =
            v1::TransactionDescriptor { branches: vec![branch], on_maturity, ..Default::default() };
        let calls = vec![write_call(operation, id, 0, &descriptor.encode_to_vec())];
        let request = v1::CallRequest { participant: self.name.into(), calls };
        let response = self.client.clone().call(request).await.expect("the participant answers").into_inner();
        read_outcome(response.outcomes.into_iter().next().expect("as many outcomes as calls"))
    }
}

/// A new id, as a participant has it.
#[must_use]
pub fn new_transaction() -> TransactionId {
    TransactionId::from_uuid(uuid::Uuid::now_v7()).expect("a UUIDv7")
}
