//! The head of a DNS message: as much as it takes to know whose question it is.

use hickory_proto::op::{Header, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

/// Bytes of a DNS header, RFC 1035 section 4.1.1.
pub(super) const HEADER_LEN: usize = 12;

/// A query that can be answered or forwarded.
#[derive(Debug, Clone)]
pub struct Question {
    pub(super) header: Header,
    pub(super) query: Query,
}

/// What arrived instead of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotAQuestion {
    /// Too short to carry an id, or itself a response: any answer could feed a loop between two servers.
    Silence,
    /// A request we can say this much about.
    Error { id: u16, op_code: OpCode, code: ResponseCode },
}

impl Question {
    /// Reads a request's header and its one question; what follows is left to whoever answers.
    pub(super) fn of_request(bytes: &[u8]) -> Result<Self, NotAQuestion> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).map_err(|_| NotAQuestion::Silence)?;
        if header.metadata.message_type == MessageType::Response {
            return Err(NotAQuestion::Silence);
        }
        let refuse = |code| NotAQuestion::Error { id: header.metadata.id, op_code: header.metadata.op_code, code };
        if header.metadata.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        if header.counts.queries != 1 {
            return Err(refuse(ResponseCode::FormErr));
        }
        let query = Query::read(&mut decoder).map_err(|_| refuse(ResponseCode::FormErr))?;
        Ok(Self { header, query })
    }

    /// The low four bits of the response code, if `bytes` answers this question under `id`. Names compare without case,
    /// as DNS has it.
    #[must_use]
    pub fn response_code(&self, bytes: &[u8], id: u16) -> Option<ResponseCode> {
        let mut decoder = BinDecoder::new(bytes);
        let header = Header::read(&mut decoder).ok()?;
        let meta = header.metadata;
        let is_reply = meta.id == id && meta.message_type == MessageType::Response && meta.op_code == OpCode::Query;
        // An upstream that refuses as early as the header may leave the question out (RFC 1035 allows a bare FORMERR).
        if is_reply && header.counts.queries == 0 && bytes.len() == HEADER_LEN {
            return (meta.response_code != ResponseCode::NoError).then_some(meta.response_code);
        }
        if !is_reply || header.counts.queries != 1 {
            return None;
        }
        let query = Query::read(&mut decoder).ok()?;
        let same = query.name() == self.query.name()
            && query.query_type() == self.query.query_type()
            && query.query_class() == self.query.query_class();
        same.then_some(meta.response_code)
    }
}

/// Writes another id over the first two bytes of a message.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.first_chunk_mut() {
        *field = id.to_be_bytes();
    }
}
