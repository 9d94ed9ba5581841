"""A conversation with a server, by a client that was generated from its OpenAPI document.

PYTHONPATH has that client, as the package `tcc`; TCC_URL says where the server is, TCC_TOKEN who asks.
"""

import os
import time
import uuid
from datetime import datetime, timedelta, timezone

from tcc import AuthenticatedClient
from tcc.api.default import get_reason
from tcc.api.hold_service import batch_create_holds, cancel_hold, confirm_hold, create_hold, get_hold, list_holds, transfer
from tcc.api.ledger_service import create_account, get_account, get_balance, get_holdings, issue, list_postings
from tcc.models import (
    Account,
    AmountInput,
    BatchCreateHoldsBody,
    CreateAccountBody,
    CreateHoldBody,
    CreateHoldBodyOnMaturity,
    CreateHoldRequestInput,
    CreateHoldRequestInputOnMaturity,
    GetReasonReason,
    Hold,
    HoldPhase,
    IssueBody,
    ListHoldsPhasesItem,
    Problem,
    TransferBody,
)

client = AuthenticatedClient(base_url=os.environ["TCC_URL"], token=os.environ["TCC_TOKEN"])


def uuid7() -> str:
    bits = int(time.time() * 1000) << 80 | 7 << 76 | 2 << 62 | uuid.uuid4().int & ~(0xFFFF << 76 | 3 << 62) & (1 << 80) - 1
    return str(uuid.UUID(int=bits))


def gold(value: int) -> AmountInput:
    return AmountInput(value=str(value), currency="GOLD")


def order(value: int, due_in: timedelta) -> CreateHoldBody:
    due_at = datetime.now(timezone.utc) + due_in
    on_maturity = CreateHoldBodyOnMaturity.ON_MATURITY_CONFIRM
    return CreateHoldBody(payer="alice", payee="bob", amount=gold(value), due_at=due_at, on_maturity=on_maturity)


for account in ("alice", "bob"):
    opened = create_account.sync(client=client, body=CreateAccountBody(id=account, currency="GOLD"))
    assert isinstance(opened, Account), opened
issued = issue.sync("alice", client=client, body=IssueBody(id=uuid7(), amount=gold(100)))
print("issued", issued.available)

# The same key and the same body are the same hold.
body = order(30, timedelta(hours=1))
first = create_hold.sync_detailed(client=client, body=body, idempotency_key="order-1")
again = create_hold.sync_detailed(client=client, body=body, idempotency_key="order-1")
print(int(first.status_code), first.parsed.phase.value, again.headers["Idempotent-Replayed"], again.parsed.id == first.parsed.id)
other = create_hold.sync(client=client, body=order(31, timedelta(hours=1)), idempotency_key="order-1")
print(other.status, other.reason, other.metadata.additional_properties["field"])
print(get_holdings.sync("alice", client=client).holds[0].id == first.parsed.id)

held = get_hold.sync_detailed(first.parsed.id, client=client)
released = cancel_hold.sync(first.parsed.id, client=client, if_match=held.headers["ETag"])
print(released.phase.value)
late = confirm_hold.sync(first.parsed.id, client=client)
assert isinstance(late, Problem), late
print(late.reason, late.retryable, get_reason.sync(GetReasonReason(late.reason), client=client).additional_properties["status"])

# A number, where others would have a text.
paid = transfer.sync(client=client, body=TransferBody(id=uuid7(), payer="alice", payee="bob", amount=AmountInput(value=7, currency="GOLD")))
assert isinstance(paid, Hold), paid
print(paid.phase.value, paid.amount.value)
poor = transfer.sync(client=client, body=TransferBody(id=uuid7(), payer="alice", payee="bob", amount=gold(5000)))
print(poor.status, poor.reason, poor.metadata.additional_properties["field"])

items = []
for value in (1, 5000):
    on_maturity = CreateHoldRequestInputOnMaturity.ON_MATURITY_CANCEL
    due_at = datetime.now(timezone.utc) + timedelta(hours=1)
    items.append(
        CreateHoldRequestInput(
            id=uuid7(), payer="alice", payee="bob", amount=gold(value), due_at=due_at, on_maturity=on_maturity
        )
    )
outcomes = batch_create_holds.sync(client=client, body=BatchCreateHoldsBody(holds=items)).outcomes
print(outcomes[0].created.hold.phase.value, outcomes[1].error.reason)

soon = create_hold.sync(client=client, body=order(3, timedelta(seconds=1)), idempotency_key="order-2")
while get_hold.sync(soon.id, client=client).phase != HoldPhase.PHASE_CONFIRMED:
    time.sleep(0.05)
page = list_holds.sync(client=client, payer="alice", phases=[ListHoldsPhasesItem.PHASE_CONFIRMED], page_size=10)
print([hold.amount.value for hold in page.holds], repr(page.next_page_token))
print([posting.kind.value for posting in list_postings.sync("bob", client=client).postings])
print(get_balance.sync("bob", client=client).available, get_account.sync("alice", client=client).held)
