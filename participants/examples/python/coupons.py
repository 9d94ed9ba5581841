"""A participant of tcc in Python: coupons. A branch's payload is the name of a coupon, of which it reserves one.

Its tables are in coupon.sql and in migrations/participant/V1__fence.sql. The environment says what it is called
(TCC_PARTICIPANT), where its database is (TCC_DATABASE_URL), and where it listens (TCC_LISTEN).
"""

import os
import signal
import threading
from concurrent import futures

import grpc
import psycopg
from tcc.v1 import participant_service_pb2 as tcc
from tcc.v1 import participant_service_pb2_grpc as tcc_grpc

NAME = os.environ["TCC_PARTICIPANT"]
TRY, CONFIRM, CANCEL = tcc.BRANCH_OPERATION_TRY, tcc.BRANCH_OPERATION_CONFIRM, tcc.BRANCH_OPERATION_CANCEL
TRIED, REFUSED, CONFIRMED, CANCELLED, STOPPED = 1, 2, 3, 4, 6
DONE, NO = tcc.OUTCOME_KIND_DONE, tcc.OUTCOME_KIND_REFUSED
PAST, GONE = tcc.OUTCOME_KIND_ALREADY_CONFIRMED, tcc.OUTCOME_KIND_ALREADY_CANCELLED
RUN, STOP = "run", "stop"

# The fence table: what is done, or answered, by the state of the fence.
TABLE = {
    None: {TRY: RUN, CONFIRM: tcc.OUTCOME_KIND_NOT_TRIED, CANCEL: STOP},
    TRIED: {TRY: DONE, CONFIRM: RUN, CANCEL: RUN},
    REFUSED: {TRY: NO, CONFIRM: GONE, CANCEL: DONE},
    CONFIRMED: {TRY: PAST, CONFIRM: DONE, CANCEL: PAST},
    CANCELLED: {TRY: GONE, CONFIRM: GONE, CANCEL: DONE},
    STOPPED: {TRY: GONE, CONFIRM: GONE, CANCEL: DONE},
}
AFTER = {TRY: TRIED, CONFIRM: CONFIRMED, CANCEL: CANCELLED}

LOCK = "SELECT state, refusal, descriptor FROM tcc_fence WHERE transaction_id = %s AND branch = %s FOR NO KEY UPDATE"
INSERT = "INSERT INTO tcc_fence (transaction_id, branch, state, descriptor) VALUES (%s, %s, %s, %s)"
MOVE = """UPDATE tcc_fence SET state = %s, refusal = %s, decided_at = clock_timestamp()
          WHERE transaction_id = %s AND branch = %s"""


def outcome(kind, reason=None, detail=""):
    return tcc.BranchOutcome(kind=kind, reason=reason or "", detail=detail)


def answer(sql, call):
    """One operation, in one local transaction: the fence first, then the coupon. What it answers is committed."""
    key = (call.transaction_id, call.branch)
    coupon = tcc.TransactionDescriptor.FromString(call.transaction_descriptor).branches[call.branch].payload.decode()
    with sql.transaction():
        state, refusal, descriptor = sql.execute(LOCK, key).fetchone() or (None, None, call.transaction_descriptor)
        if descriptor != call.transaction_descriptor:
            return outcome(tcc.OUTCOME_KIND_OTHER_DESCRIPTOR)
        what = TABLE[state][call.operation]
        if what not in (RUN, STOP):
            return outcome(what, refusal)
        after = STOPPED if what is STOP else AFTER[call.operation]
        if state is None:
            sql.execute(INSERT, (*key, after, call.transaction_descriptor))
        else:
            sql.execute(MOVE, (after, None, *key))
        if after == TRIED:
            take = "UPDATE coupon SET remaining = remaining - 1 WHERE name = %s AND remaining > 0"
            if sql.execute(take, (coupon,)).rowcount == 0:
                sql.execute(MOVE, (REFUSED, "NO_COUPON_LEFT", *key))
                return outcome(NO, "NO_COUPON_LEFT")
        elif after == CANCELLED:
            sql.execute("UPDATE coupon SET remaining = remaining + 1 WHERE name = %s", (coupon,))
        return outcome(DONE)


class Coupons(tcc_grpc.ParticipantServiceServicer):
    def __init__(self):
        self.thread = threading.local()

    def connection(self):
        """Each thread has a connection of its own. A warning 01000 comes with a COMMIT that is in doubt."""
        if getattr(self.thread, "sql", None) is None or self.thread.sql.closed:
            self.thread.sql = psycopg.connect(os.environ["TCC_DATABASE_URL"], autocommit=True)
            self.thread.in_doubt = False
            self.thread.sql.add_notice_handler(self.notice)
        return self.thread.sql

    def notice(self, notice):
        self.thread.in_doubt |= notice.sqlstate == "01000"

    def one(self, call):
        if call.operation not in AFTER:
            return outcome(tcc.OUTCOME_KIND_FAILED, detail=f"there is no operation {call.operation}")
        for _ in range(8):
            try:
                answered = answer(self.connection(), call)
                if not self.thread.in_doubt:
                    return answered
                self.thread.sql.close()
                return outcome(tcc.OUTCOME_KIND_UNKNOWN, detail="a commit is in doubt")
            except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                continue  # Somebody else came first: decide anew.
            except psycopg.OperationalError as error:
                self.thread.sql = None
                return outcome(tcc.OUTCOME_KIND_UNKNOWN, detail=str(error))
            except Exception as error:
                return outcome(tcc.OUTCOME_KIND_FAILED, detail=str(error))
        return outcome(tcc.OUTCOME_KIND_FAILED, detail="somebody else came first, again and again")

    def Describe(self, request, context):
        described = tcc.DescribeResponse(protocol_version=1, name=NAME, software="coupons.py")
        described.time.GetCurrentTime()
        return described

    def Call(self, request, context):
        if request.participant != NAME:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this is participant {NAME}")
        return tcc.CallResponse(outcomes=[self.one(call) for call in request.calls])


def main():
    options = [("grpc.max_receive_message_length", 8 * 1024 * 1024), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=options)
    tcc_grpc.add_ParticipantServiceServicer_to_server(Coupons(), server)
    host, port = os.environ.get("TCC_LISTEN", "127.0.0.1:7080").rsplit(":", 1)
    port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    print(f"{NAME}: ready on http://{host}:{port}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(10))
    server.wait_for_termination()


if __name__ == "__main__":
    main()
