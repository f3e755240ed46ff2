//! What is scripted to go wrong, what is held, and the log of what arrived.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The kinds of request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Op {
    /// PutObject.
    Put,
    /// GetObject.
    Get,
    /// HeadObject.
    Head,
    /// DeleteObject.
    Delete,
    /// ListObjectsV2. Its key is the prefix asked for.
    List,
    /// CreateMultipartUpload.
    CreateUpload,
    /// UploadPart.
    UploadPart,
    /// CompleteMultipartUpload.
    CompleteUpload,
    /// AbortMultipartUpload.
    AbortUpload,
    /// ListParts.
    ListParts,
    /// ListMultipartUploads. Its key is the prefix asked for.
    ListUploads,
    /// HeadBucket. Has no key.
    HeadBucket,
    /// CreateBucket. Has no key.
    CreateBucket,
    /// PutObjectLegalHold.
    LegalHold,
    /// Any question about the bucket's settings. Has no key.
    Settings,
    /// Anything else, which is answered with 501.
    Other,
}

impl Op {
    /// Requests of this kind whose key begins with `prefix`.
    pub fn at(self, prefix: impl Into<String>) -> Target {
        Target { op: self, prefix: prefix.into() }
    }
}

/// Which requests are meant: a kind and the beginning of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    op: Op,
    prefix: String,
}

impl Target {
    pub(super) fn matches(&self, op: Op, key: &str) -> bool {
        self.op == op && key.starts_with(&self.prefix)
    }
}

impl From<Op> for Target {
    fn from(op: Op) -> Target {
        op.at("")
    }
}

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answered with this status and S3 error code after the request was read; nothing is carried out. The usual ones
    /// are constants: [`Fault::SLOW_DOWN`] and so on. Status 200 is possible too: S3 may report a failed
    /// CompleteMultipartUpload so.
    Answer(u16, &'static str),
    /// The connection breaks before anything is carried out.
    RequestLost,
    /// The request is carried out, then the connection breaks instead of a reply.
    ReplyLost,
    /// Carried out this much later.
    Delay(Duration),
    /// Bodies, both ways, take this many bytes a second.
    BytesPerSecond(u64),
    /// `If-None-Match` is ignored: a second write replaces the first, as Garage does it.
    IgnoreIfNoneMatch,
    /// User metadata is missing from the reply, as after a copy by a tool that keeps none.
    MetadataLost,
    /// A page of a listing that is not the last says so, and not how to ask for the next.
    TokenLost,
    /// The connection breaks after this many bytes of the reply's body.
    CutAt(u64),
    /// The lowest bit of the byte at this offset of the reply's body is flipped.
    FlipBit(u64),
    /// The checksums in the reply are wrong, the body is right.
    WrongChecksum,
}

impl Fault {
    /// 409: another conditional write of the same name was under way.
    pub const CONFLICT: Fault = Fault::Answer(409, "ConditionalRequestConflict");
    /// 412, whether or not anything is there.
    pub const PRECONDITION_FAILED: Fault = Fault::Answer(412, "PreconditionFailed");
    /// 500.
    pub const INTERNAL_ERROR: Fault = Fault::Answer(500, "InternalError");
    /// 503 SlowDown.
    pub const SLOW_DOWN: Fault = Fault::Answer(503, "SlowDown");
    /// The session token has run out: 400 at AWS.
    pub const EXPIRED_TOKEN: Fault = Fault::Answer(400, "ExpiredToken");
    /// 403: the clock of the client is wrong.
    pub const TIME_TOO_SKEWED: Fault = Fault::Answer(403, "RequestTimeTooSkewed");
    /// 403: these credentials may not.
    pub const ACCESS_DENIED: Fault = Fault::Answer(403, "AccessDenied");
    /// 404: no such bucket.
    pub const NO_SUCH_BUCKET: Fault = Fault::Answer(404, "NoSuchBucket");
    /// 301: the bucket is in another region, which the header `x-amz-bucket-region` names.
    pub const WRONG_REGION: Fault = Fault::Answer(301, "PermanentRedirect");
    /// 400: what arrived is not what was sent.
    pub const BAD_DIGEST: Fault = Fault::Answer(400, "BadDigest");
}

/// What a request meets.
#[derive(Default)]
pub(super) struct Fate {
    pub(super) faults: Vec<Fault>,
    pub(super) gates: Vec<Arc<Gate>>,
}

#[derive(Default)]
struct Rules {
    once: Vec<(Target, Fault)>,
    always: Vec<(Target, Fault)>,
    gates: Vec<(Target, Arc<Gate>)>,
    log: Vec<(Op, String)>,
    /// The only session token that has not expired.
    token: Option<String>,
}

/// Everything scripted, and the log.
#[derive(Default)]
pub(super) struct Script {
    rules: Arc<Mutex<Rules>>,
}

impl Script {
    pub(super) fn once(&self, target: Target, fault: Fault) {
        self.rules.lock().unwrap().once.push((target, fault));
    }

    pub(super) fn always(&self, target: Target, fault: Fault) {
        self.rules.lock().unwrap().always.push((target, fault));
    }

    pub(super) fn clear(&self) {
        let mut rules = self.rules.lock().unwrap();
        rules.once.clear();
        rules.always.clear();
    }

    pub(super) fn require_token(&self, token: Option<&str>) {
        self.rules.lock().unwrap().token = token.map(str::to_owned);
    }

    /// True if a request with this session token is answered with "expired".
    pub(super) fn has_expired(&self, token: Option<&str>) -> bool {
        let valid = &self.rules.lock().unwrap().token;
        valid.is_some() && valid.as_deref() != token
    }

    pub(super) fn left(&self) -> usize {
        self.rules.lock().unwrap().once.len()
    }

    pub(super) fn hold(&self, target: Target) -> Hold {
        let gate = Arc::new(Gate { open: CancellationToken::new(), arrived: watch::Sender::new(0) });
        self.rules.lock().unwrap().gates.push((target, gate.clone()));
        Hold { gate, rules: self.rules.clone() }
    }

    /// Logs a request and says what it meets.
    pub(super) fn meet(&self, op: Op, key: &str) -> Fate {
        let mut rules = self.rules.lock().unwrap();
        rules.log.push((op, key.to_owned()));
        let mut fate = Fate::default();
        if let Some(next) = rules.once.iter().position(|(target, _)| target.matches(op, key)) {
            fate.faults.push(rules.once.remove(next).1);
        }
        fate.faults.extend(rules.always.iter().filter(|(target, _)| target.matches(op, key)).map(|(_, fault)| *fault));
        fate.gates
            .extend(rules.gates.iter().filter(|(target, _)| target.matches(op, key)).map(|(_, gate)| gate.clone()));
        fate
    }

    pub(super) fn with_log<T>(&self, look: impl FnOnce(&[(Op, String)]) -> T) -> T {
        look(&self.rules.lock().unwrap().log)
    }

    pub(super) fn clear_log(&self) {
        self.rules.lock().unwrap().log.clear();
    }
}

/// Where held requests wait.
pub(super) struct Gate {
    open: CancellationToken,
    arrived: watch::Sender<usize>,
}

impl Gate {
    pub(super) async fn pass(&self) {
        self.arrived.send_modify(|arrived| *arrived += 1);
        self.open.cancelled().await;
    }
}

/// Requests are held while this lives. See [`S3Server::hold`](super::S3Server::hold).
#[must_use = "dropping a hold releases it"]
pub struct Hold {
    gate: Arc<Gate>,
    rules: Arc<Mutex<Rules>>,
}

impl Hold {
    /// Waits until `requests` requests have been held in all.
    pub async fn arrived(&self, requests: usize) {
        let mut arrived = self.gate.arrived.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), arrived.wait_for(|arrived| *arrived >= requests));
        waited
            .await
            .expect("the requests that a test holds should arrive within 30 seconds")
            .expect("we own the sender");
    }

    /// How many requests have been held so far.
    pub fn count(&self) -> usize {
        *self.gate.arrived.borrow()
    }

    /// Those that are held stay, and all that come later pass.
    pub fn let_later_ones_pass(&self) {
        self.rules.lock().unwrap().gates.retain(|(_, gate)| !Arc::ptr_eq(gate, &self.gate));
    }

    /// Lets them go, and all that come later pass.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.let_later_ones_pass();
        self.gate.open.cancel();
    }
}
