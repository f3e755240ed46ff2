//! The HTTP side: connections, what kind of request this is, and the faults it meets around the S3 service.

use super::S3Server;
use super::faults::{Fate, Fault, Op, Script};
use super::policy::{Guard, Users};
use super::storage::Storage;
use super::wire::{IgnoresIfNoneMatch, LosesToken, Wire};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, StdError};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// At a limited rate, bodies pass in pieces of this size.
const PACED_BYTES: usize = 16 * 1024;

/// What is asked of a bucket's settings.
const SETTINGS: [&str; 6] =
    ["versioning", "object-lock", "encryption", "publicAccessBlock", "policyStatus", "lifecycle"];

/// How long the last bytes have to leave before a scripted cut.
const FLUSH_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone)]
pub(super) struct Service {
    s3: S3Service,
    script: Arc<Script>,
}

/// Serves until `stop`, on a runtime of this thread's own.
pub(super) fn run(listener: TcpListener, service: Service, stop: CancellationToken) {
    // The S3 library reports refused requests as errors: not ours, and tests look at what the program logs.
    let mute = || std::mem::forget(tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default()));
    mute();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("s3-server")
        .on_thread_start(mute)
        .enable_all()
        .build()
        .expect("a runtime for the S3 server");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener that does not block");
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            // A client that is gone again, or no descriptor free for it: the next may do better.
            let Ok((stream, _)) = accepted else { continue };
            let _ = stream.set_nodelay(true);
            let service = service.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let service = service.clone();
                    async move { service.answer(request).await }
                });
                // Ends with an error when a fault breaks the connection, or the client does.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    // Waits for what is being carried out at this moment: then nobody holds a stored body any more.
    drop(runtime);
}

impl Service {
    pub(super) fn new(storage: Arc<Storage>, script: Arc<Script>, users: Arc<Users>) -> Service {
        let guard = Guard { users, storage: storage.clone() };
        let mut builder = S3ServiceBuilder::new(Wire::new(storage));
        builder.set_auth(guard.clone());
        builder.set_access(guard);
        Service { s3: builder.build(), script }
    }

    /// Answers a request. An error breaks the connection.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Shaped<Body>>, HttpError> {
        let (op, key) = classify(&request);
        let Fate { mut faults, gates } = self.script.meet(op, &key);
        let token = request.headers().get("x-amz-security-token").and_then(|token| token.to_str().ok());
        if self.script.has_expired(token) {
            faults.push(Fault::EXPIRED_TOKEN);
        }
        let (mut parts, body) = request.into_parts();

        let mut shape = Shape::default();
        let mut reply_lost = false;
        for fault in &faults {
            match *fault {
                Fault::Delay(pause) => tokio::time::sleep(pause).await,
                Fault::BytesPerSecond(rate) => shape.bytes_per_second = Some(rate),
                Fault::CutAt(offset) => shape.cut_at = Some(offset),
                Fault::FlipBit(offset) => shape.flip_at = Some(offset),
                Fault::IgnoreIfNoneMatch => drop(parts.extensions.insert(IgnoresIfNoneMatch)),
                Fault::TokenLost => drop(parts.extensions.insert(LosesToken)),
                Fault::ReplyLost => reply_lost = true,
                Fault::RequestLost => return Err(HttpError::new("the request is lost, by script".into())),
                Fault::Answer(..) | Fault::MetadataLost | Fault::WrongChecksum => {}
            }
        }
        let mut body = arriving(body, shape.bytes_per_second);

        let answered = faults.iter().find_map(|fault| match fault {
            Fault::Answer(status, code) => Some((*status, *code)),
            _ => None,
        });
        let mut response = if let Some((status, code)) = answered {
            while let Some(frame) = body.frame().await {
                frame.map_err(HttpError::new)?;
            }
            scripted(status, code)
        } else if gates.is_empty() {
            self.s3.call(Request::from_parts(parts, body)).await?
        } else {
            // Read first, and a task of its own: what is carried out late no longer needs its client.
            let body = Body::from(body.collect().await.map_err(HttpError::new)?.to_bytes());
            let s3 = self.s3.clone();
            let late = tokio::spawn(async move {
                for gate in gates {
                    gate.pass().await;
                }
                s3.call(Request::from_parts(parts, body)).await
            });
            late.await.map_err(|panic| HttpError::new(Box::new(panic)))??
        };

        if reply_lost {
            return Err(HttpError::new("the reply is lost, by script".into()));
        }
        if faults.contains(&Fault::MetadataLost) {
            lose_metadata(response.headers_mut());
        }
        if faults.contains(&Fault::WrongChecksum) {
            falsify_checksums(response.headers_mut());
        }
        Ok(response.map(|body| Shaped::new(body, shape)))
    }
}

/// A request's body, at the rate that is scripted.
fn arriving(body: Incoming, bytes_per_second: Option<u64>) -> Body {
    match bytes_per_second {
        None => Body::from(body),
        Some(_) => Body::http_body_unsync(Shaped::new(body, Shape { bytes_per_second, ..Shape::default() })),
    }
}

/// The kind of a path-style request, and its key or prefix.
fn classify<B>(request: &Request<B>) -> (Op, String) {
    let path = request.uri().path().trim_start_matches('/');
    let key = path.split_once('/').map_or("", |(_, key)| key);
    let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
    let query = request.uri().query().unwrap_or("");
    let find = |wanted: &str| {
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(name, _)| *name == wanted)
    };
    let has = |wanted: &str| find(wanted).is_some();
    let prefix =
        || percent_decode_str(find("prefix").map_or("", |(_, prefix)| prefix)).decode_utf8_lossy().into_owned();
    match (request.method(), key.is_empty()) {
        (&Method::PUT, false) if has("partNumber") => (Op::UploadPart, key),
        (&Method::PUT, false) if has("legal-hold") => (Op::LegalHold, key),
        (&Method::PUT, false) => (Op::Put, key),
        (&Method::GET, false) if has("uploadId") => (Op::ListParts, key),
        (&Method::GET, false) => (Op::Get, key),
        (&Method::HEAD, false) => (Op::Head, key),
        (&Method::DELETE, false) if has("uploadId") => (Op::AbortUpload, key),
        (&Method::DELETE, false) => (Op::Delete, key),
        (&Method::POST, false) if has("uploads") => (Op::CreateUpload, key),
        (&Method::POST, false) if has("uploadId") => (Op::CompleteUpload, key),
        (&Method::GET, true) if has("list-type") => (Op::List, prefix()),
        (&Method::GET, true) if has("uploads") => (Op::ListUploads, prefix()),
        (&Method::GET, true) if SETTINGS.iter().any(|setting| has(setting)) => (Op::Settings, key),
        (&Method::HEAD, true) => (Op::HeadBucket, key),
        (&Method::PUT, true) if query.is_empty() || has("x-id") => (Op::CreateBucket, key),
        _ => (Op::Other, key),
    }
}

fn scripted(status: u16, code: &str) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>by script</Message></Error>"
    );
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).expect("a script names a status that HTTP has");
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/xml"));
    headers.insert("x-amz-bucket-region", HeaderValue::from_static(S3Server::REGION));
    response
}

fn lose_metadata(headers: &mut HeaderMap) {
    let names: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with("x-amz-meta-")).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn falsify_checksums(headers: &mut HeaderMap) {
    for (name, value) in headers.iter_mut() {
        if name.as_str().starts_with("x-amz-checksum-")
            && let Ok(mut sum) = BASE64_STANDARD.decode(value.as_bytes())
        {
            sum[0] ^= 1;
            *value = HeaderValue::from_str(&BASE64_STANDARD.encode(sum)).expect("Base64 is a valid header");
        }
    }
}

/// What happens to a body on its way.
#[derive(Clone, Copy, Default)]
struct Shape {
    bytes_per_second: Option<u64>,
    cut_at: Option<u64>,
    flip_at: Option<u64>,
}

/// A body that is slow, cut or altered on its way.
struct Shaped<B> {
    inner: B,
    shape: Shape,
    position: u64,
    waiting: Bytes,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    is_flushed: bool,
}

impl<B> Shaped<B> {
    fn new(inner: B, shape: Shape) -> Shaped<B> {
        Shaped { inner, shape, position: 0, waiting: Bytes::new(), pause: None, is_flushed: false }
    }
}

impl<B> hyper::body::Body for Shaped<B>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        if self.waiting.is_empty() {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(frame) => frame.map_err(Into::into)?,
            };
            match frame.into_data() {
                Ok(data) => self.waiting = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let mut bytes = self.waiting.len();
        if let Some(rate) = self.shape.bytes_per_second {
            bytes = bytes.min(PACED_BYTES);
            self.pause = Some(Box::pin(tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64))));
        }
        if let Some(cut_at) = self.shape.cut_at {
            bytes = bytes.min((cut_at - self.position) as usize);
            if bytes == 0 && self.is_flushed {
                return Poll::Ready(Some(Err("the body is cut, by script".into())));
            }
            if bytes == 0 {
                // What has been handed over so far shall reach the client before the connection breaks.
                self.is_flushed = true;
                self.pause = Some(Box::pin(tokio::time::sleep(FLUSH_PAUSE)));
                return self.poll_frame(cx);
            }
        }
        let mut data = self.waiting.split_to(bytes);
        if let Some(flip_at) = self.shape.flip_at
            && let Some(byte) = flip_at.checked_sub(self.position).filter(|byte| *byte < bytes as u64)
        {
            let mut altered = data.to_vec();
            altered[byte as usize] ^= 1;
            data = altered.into();
        }
        self.position += bytes as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let waiting = self.waiting.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + waiting);
        }
        hint.set_lower(hint.lower() + waiting);
        hint
    }
}
