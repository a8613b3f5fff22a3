//! What a data plane does with responses, and what it must still have after them.

use std::collections::BTreeMap;

use bytes::Bytes;
use culvert_xds::{Interest, Name, Rejection, Request, Update};

use crate::contents::is_bad;

/// What the consumer must still have: the content accepted last, as long as it was never unpublished or given up.
#[derive(Default)]
pub(crate) struct Shadow {
    pub(crate) accepted: BTreeMap<(&'static str, Name), Bytes>,
    /// When a name was last not published, counted in messages.
    pub(crate) absent: BTreeMap<(&'static str, Name), u64>,
}

impl Shadow {
    fn accept(&mut self, key: (&'static str, Name), content: Bytes, sent: u64) {
        // What was unpublished while it was on its way may or may not be taken back.
        if self.absent.get(&key).is_none_or(|absent| *absent < sent) {
            self.accepted.insert(key, content);
        }
    }
}

/// What a data plane does with a response: good resources apply, bad ones are refused by name.
pub(crate) fn consume(
    update: Update<'_>,
    of: &'static str,
    sent: u64,
    store: &mut BTreeMap<(&'static str, Name), Bytes>,
    shadow: &mut Shadow,
    refused: &mut u64,
) -> Request {
    assert_eq!(update.rejections(), [], "the server half sends nothing malformed");
    let mut rejections = Vec::new();
    for received in update.resources() {
        let key = (of, Name::clone(&received.name));
        if is_bad(&received.body.value) {
            rejections.push(Rejection { name: received.name.to_string(), reason: "mark: bad".to_owned() });
        } else {
            store.insert(key.clone(), received.body.value.clone());
            shadow.accept(key, received.body.value.clone(), sent);
        }
    }
    for name in update.removed() {
        store.remove(&(of, Name::clone(name)));
    }
    *refused += rejections.len() as u64;
    if rejections.is_empty() { update.ack() } else { update.nack(rejections) }
}

pub(crate) fn forget(
    store: &mut BTreeMap<(&'static str, Name), Bytes>,
    shadow: &mut Shadow,
    of: &'static str,
    interest: &Interest,
) {
    let keep = |key: &(&'static str, Name)| key.0 != of || interest.covers(&key.1);
    store.retain(|key, _| keep(key));
    shadow.accepted.retain(|key, _| keep(key));
}
