//! How handshake messages lie in CRYPTO streams, and what their payloads hold. Everything is bounded before it is kept.

/// The longest handshake message. A server's whole first flight then stays below three 1200-byte datagrams, which is
/// what QUIC lets it send before the client has answered (RFC 9000 section 8.1).
pub const MAX_MESSAGE: usize = 3072;
/// The longest encoded transport parameters; quinn-proto's take about 100 bytes.
pub const MAX_PARAMETERS: usize = 512;
/// The longest credential: an authority record and a passport take about 700 bytes.
pub const MAX_CREDENTIAL: usize = 2048;

/// Why handshake bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    #[error("a handshake message of {length} bytes")]
    Length { length: usize },
    #[error("bytes follow a complete handshake message")]
    Trailing,
    #[error("a handshake payload is cut short or too long")]
    Payload,
}

/// Puts CRYPTO bytes together until one message is complete.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
}

impl Inbox {
    /// Takes in `bytes`; returns the message once it is whole.
    ///
    /// The length is checked before anything past it is kept, and no bytes may follow a message: the next one always
    /// belongs to another state, and mostly to another packet number space.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<Option<Vec<u8>>, FramingError> {
        while self.buffer.len() < 2 {
            let Some((&first, rest)) = bytes.split_first() else {
                return Ok(None);
            };
            self.buffer.push(first);
            bytes = rest;
        }
        let length = usize::from(u16::from_be_bytes([self.buffer[0], self.buffer[1]]));
        if length == 0 || length > MAX_MESSAGE {
            return Err(FramingError::Length { length });
        }
        let missing = length + 2 - self.buffer.len();
        if bytes.len() > missing {
            return Err(FramingError::Trailing);
        }
        self.buffer.extend_from_slice(bytes);
        if bytes.len() < missing {
            return Ok(None);
        }
        let mut message = core::mem::take(&mut self.buffer);
        message.drain(..2);
        Ok(Some(message))
    }
}

/// Appends `lp16(message)`.
pub(crate) fn write_message(message: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(message.len()).expect("handshake messages are bounded far below 64 KiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(message);
}

/// The payload of a Noise message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Payload<'a> {
    pub(crate) parameters: &'a [u8],
    pub(crate) credential: &'a [u8],
}

impl<'a> Payload<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.parameters.len() + self.credential.len());
        write_message(self.parameters, &mut out);
        write_message(self.credential, &mut out);
        out
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, FramingError> {
        let (parameters, rest) = split(bytes, MAX_PARAMETERS)?;
        let (credential, rest) = split(rest, MAX_CREDENTIAL)?;
        if !rest.is_empty() {
            return Err(FramingError::Payload);
        }
        Ok(Self { parameters, credential })
    }
}

fn split(bytes: &[u8], max: usize) -> Result<(&[u8], &[u8]), FramingError> {
    let (length, rest) = bytes.split_first_chunk::<2>().ok_or(FramingError::Payload)?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length > max {
        return Err(FramingError::Payload);
    }
    rest.split_at_checked(length).ok_or(FramingError::Payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_put_together_from_single_bytes() {
        let mut wire = Vec::new();
        write_message(b"hello", &mut wire);
        let mut inbox = Inbox::default();
        for byte in &wire[..6] {
            assert_eq!(inbox.push(&[*byte]), Ok(None));
        }
        assert_eq!(inbox.push(&wire[6..]), Ok(Some(b"hello".to_vec())));
    }

    #[test]
    fn an_oversize_length_is_refused_before_its_bytes_are_kept() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.push(&[0x0c, 0x01, 0]), Err(FramingError::Length { length: 3073 }));
        assert_eq!(inbox.buffer.len(), 2);
    }

    #[test]
    fn an_empty_message_is_refused() {
        assert_eq!(Inbox::default().push(&[0, 0]), Err(FramingError::Length { length: 0 }));
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        assert_eq!(Inbox::default().push(&[0, 1, 7, 7]), Err(FramingError::Trailing));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_grow_the_inbox(chunks: Vec<Vec<u8>>) {
            let mut inbox = Inbox::default();
            for chunk in chunks {
                let _ = inbox.push(&chunk);
                prop_assert!(inbox.buffer.len() <= MAX_MESSAGE + 2);
            }
        }

        #[test]
        fn an_arbitrary_payload_decodes_to_itself_or_not_at_all(bytes: Vec<u8>) {
            if let Ok(payload) = Payload::decode(&bytes) {
                prop_assert_eq!(payload.encode(), bytes);
            }
        }
    }
}
