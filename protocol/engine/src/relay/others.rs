//! Who shares our routing id, as the relay says.

use peerage_model::relay::frame::{self, EndpointId, Tag};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// Nonce of the latest WHO_ELSE, until it is answered.
    asked: Option<[u8; 8]>,
    known: Vec<EndpointId>,
}

impl Others {
    pub(super) fn known(&self) -> &[EndpointId] {
        &self.known
    }

    /// WHO_ELSE, with a nonce that its answer repeats.
    pub(super) fn ask(&mut self, tag: Tag, nonce: [u8; 8]) -> Vec<u8> {
        self.asked = Some(nonce);
        frame::who_else(tag, nonce).to_vec()
    }

    /// Whether that answers our latest WHO_ELSE, which it does once.
    pub(super) fn is_answered_by(&mut self, nonce: [u8; 8]) -> bool {
        self.asked.take_if(|asked| *asked == nonce).is_some()
    }

    /// The relay names them. Whether that is news.
    pub(super) fn are(&mut self, ids: &[[u8; 8]]) -> bool {
        let named: Vec<EndpointId> = ids.iter().map(|id| EndpointId(*id)).collect();
        let is_news = self.known != named;
        self.known = named;
        is_news
    }
}
