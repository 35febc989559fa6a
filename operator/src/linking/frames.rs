//! Frames of a stream between operators, read so that waiting for one can be given up at any time.

use std::io;

use peerage_agent::tunnel::TunnelStream;
use peerage_model::linking::{MAX_FRAME, SILENCE};
use peerage_model::operator::split_frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// It broke, or the other operator closed it.
    #[error(transparent)]
    Broken(#[from] io::Error),
    /// What came is not this protocol.
    #[error("the other operator speaks another protocol; are both of the same version?")]
    Malformed,
    /// Nothing came for too long.
    #[error("the other operator fell silent")]
    Silent,
}

/// The reading half.
pub(super) struct Reader {
    stream: ReadHalf<TunnelStream>,
    buffer: Vec<u8>,
}

/// The writing half.
pub(super) struct Writer(WriteHalf<TunnelStream>);

/// Both halves of a stream.
pub(super) fn split(stream: TunnelStream) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(stream);
    (Reader { stream: read, buffer: Vec::new() }, Writer(write))
}

impl Reader {
    /// The next frame, without its length. May be dropped at any await.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, Ended> {
        loop {
            let split = split_frame(&self.buffer, MAX_FRAME).map_err(|_| Ended::Malformed)?;
            if let Some((frame, rest)) = split {
                let frame = frame.to_vec();
                self.buffer = rest.to_vec();
                return Ok(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Ended::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl Writer {
    /// Writes a frame. Who takes none for too long is silent.
    pub(super) async fn send(&mut self, frame: &[u8]) -> Result<(), Ended> {
        let written = async {
            self.0.write_all(frame).await?;
            self.0.flush().await
        };
        tokio::time::timeout(SILENCE, written).await.map_err(|_| Ended::Silent)?.map_err(Ended::Broken)
    }
}
