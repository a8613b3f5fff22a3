//! What ends when the token that opened it is taken back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;

use crate::control::Control;
use crate::messages::trailers;
use crate::tokens::Given;

/// The body of an answer to whoever gave a token: as it is until the token is no longer known, or is another's; then the
/// status UNAUTHENTICATED. **Whatever is served to streams, nothing of it goes on**: what makes the answer is dropped.
pub(crate) struct UntilRevoked {
    answer: Body,
    /// `None`: it is.
    revoked: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    control: Arc<Control>,
    peer: Arc<str>,
}

impl UntilRevoked {
    pub(crate) fn new(answer: Body, token: Given, control: Arc<Control>, peer: Arc<str>) -> Self {
        Self { answer, revoked: Some(Box::pin(token.revoked())), control, peer }
    }
}

impl HttpBody for UntilRevoked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(revoked) = &mut self.revoked else { return Poll::Ready(None) };
        if revoked.as_mut().poll(cx).is_pending() {
            return Pin::new(&mut self.answer).poll_frame(cx);
        }
        self.revoked = None;
        self.answer = Body::empty();
        self.control.metrics.revoked.add();
        tracing::info!(peer = &*self.peer, "a stream ends: its token was taken back");
        let status = Status::unauthenticated("the token was taken back");
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }
}
