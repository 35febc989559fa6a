//! Copies both ways between a local TCP connection and a tunnel stream.
//!
//! The two directions end by themselves: end of input here is a shutdown there, and the other direction goes on. An
//! error anywhere ends both at once, as a reset on both sides. A direction reads only when all it has read is written,
//! so at most one chunk per direction is held, and the kernel's and the tunnel's own windows do the rest.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::buffer::Buffer;
use crate::tunnel::TunnelStream;

/// Chunks that one direction may move before the other gets its turn, and other tasks theirs.
const TURN: usize = 8;

/// Bytes that went each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// From the local program into the tunnel.
    pub sent: u64,
    /// From the tunnel to the local program.
    pub received: u64,
}

/// Which side broke the connection.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The local program's side.
    #[error("the local connection broke")]
    Local(#[source] io::Error),
    /// The tunnel's side; the inner error may be a [`crate::tunnel::DialError`].
    #[error("the tunnel stream broke")]
    Tunnel(#[source] io::Error),
}

impl Broken {
    fn outward(end: Side) -> Self {
        match end {
            Side::Reader(error) => Self::Local(error),
            Side::Writer(error) => Self::Tunnel(error),
        }
    }

    fn inward(end: Side) -> Self {
        match end {
            Side::Reader(error) => Self::Tunnel(error),
            Side::Writer(error) => Self::Local(error),
        }
    }
}

/// Copies until both directions have ended or one side breaks; `moved` is right at any moment. When this ends early,
/// also by being dropped, the local program sees a reset and so does the peer.
///
/// # Errors
/// [`Broken`] says which side broke.
pub async fn splice(local: TcpStream, tunnel: TunnelStream, moved: &mut Moved) -> Result<(), Broken> {
    Local::new(local).splice(tunnel, moved).await
}

/// Resets a connection so that its program sees `ECONNRESET` and not a clean end.
pub(super) fn reset(stream: TcpStream) {
    drop(Local::new(stream));
}

/// A program's connection, which is reset when dropped before it has ended well. Also when this process is killed: a body
/// that ends with its connection would look complete if the kernel closed it in order.
#[derive(Debug)]
pub(crate) struct Local {
    stream: TcpStream,
    finished: bool,
}

impl Local {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Closing with a linger time of zero sends RST and throws away what is queued.
        drop(stream.set_zero_linger());
        Self { stream, finished: false }
    }

    /// The connection, to be ended in another way than by reset.
    pub(crate) fn finish(&mut self) -> &mut TcpStream {
        self.ends_well();
        &mut self.stream
    }

    /// See [`splice`].
    pub(super) async fn splice(&mut self, mut tunnel: TunnelStream, moved: &mut Moved) -> Result<(), Broken> {
        // Small writes are the program's choice; adding Nagle's delay to the tunnel's would be ours.
        drop(self.stream.set_nodelay(true));
        let (mut outward, mut inward) = (Pump::default(), Pump::default());
        poll_fn(|cx| {
            let out = outward.poll(cx, &mut self.stream, &mut tunnel, &mut moved.sent).map_err(Broken::outward)?;
            let back = inward.poll(cx, &mut tunnel, &mut self.stream, &mut moved.received).map_err(Broken::inward)?;
            if inward.holds() {
                lost(&mut tunnel, cx)?;
            }
            if out.is_ready() || back.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await?;
        match (&outward, &inward) {
            (Pump::Done, Pump::Done) => {}
            (Pump::Done, _) => self.carry_rest(inward, &mut tunnel, &mut moved.received).await?,
            (_, _) => self.send_rest(outward, &mut tunnel, &mut moved.sent).await?,
        }
        self.ends_well();
        Ok(())
    }

    /// The program has said all; what is left is for it to hear. Should it die meanwhile, only its socket says so.
    async fn carry_rest(
        &mut self,
        mut inward: Pump,
        tunnel: &mut TunnelStream,
        received: &mut u64,
    ) -> Result<(), Broken> {
        let (read, mut write) = self.stream.split();
        let mut dies = pin!(read.ready(Interest::ERROR));
        poll_fn(|cx| {
            // Written before its death is looked at: who only answered with a reset to the very last byte has it all.
            if let Poll::Ready(done) = inward.poll(cx, tunnel, &mut write, received) {
                return Poll::Ready(done.map_err(Broken::inward));
            }
            if inward.holds() {
                lost(tunnel, cx)?;
            }
            dies.as_mut().poll(cx).map(|_| Err(Broken::Local(io::ErrorKind::ConnectionReset.into())))
        })
        .await
    }

    /// The peer has said all, and the program has heard it; what is left is for the peer to hear, for as long as it wants to.
    async fn send_rest(&mut self, mut outward: Pump, tunnel: &mut TunnelStream, sent: &mut u64) -> Result<(), Broken> {
        poll_fn(|cx| {
            match outward.poll(cx, &mut self.stream, tunnel, sent) {
                Poll::Ready(Err(Side::Reader(error))) => return Poll::Ready(Err(Broken::Local(error))),
                // Nobody takes it any more: as below.
                Poll::Ready(Ok(()) | Err(Side::Writer(_))) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            // No reset, which would take from the program what it has not read yet. What it still writes is answered by one.
            // Also where the session is over: the answer was whole before.
            tunnel.poll_unwanted(cx).map(Ok)
        })
        .await
    }

    fn ends_well(&mut self) {
        self.finished = true;
        // Fails only for a connection that is gone, which is past caring.
        let _ = socket2::SockRef::from(&self.stream).set_linger(None);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if !self.finished {
            // Again, in case that it could not be set before the connection was made.
            drop(self.stream.set_zero_linger());
        }
    }
}

/// Fails when the session under a stream has ended.
fn lost(tunnel: &mut TunnelStream, cx: &mut Context<'_>) -> Result<(), Broken> {
    match tunnel.poll_lost(cx) {
        Poll::Ready(error) => Err(Broken::Tunnel(error)),
        Poll::Pending => Ok(()),
    }
}

/// One direction.
#[derive(Debug, Default)]
enum Pump {
    /// Nothing is held; `unflushed` after a write.
    #[default]
    Empty,
    /// Written but maybe kept back by the writer.
    Unflushed,
    /// Read and not yet all written.
    Holding { buffer: Buffer, start: usize, end: usize },
    /// The reader has ended; the writer is being told.
    Closing,
    /// Over.
    Done,
}

enum Side {
    Reader(io::Error),
    Writer(io::Error),
}

impl Pump {
    /// Whether it waits for its writer, and so does not learn what becomes of its reader. One that has read the end needs
    /// nothing more of it.
    fn holds(&self) -> bool {
        matches!(self, Self::Holding { .. })
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut u64,
    ) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        let mut chunks = 0;
        loop {
            match self {
                Self::Empty | Self::Unflushed => {
                    if chunks == TURN {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    chunks += 1;
                    ready!(self.poll_fill(cx, reader, writer))?;
                }
                Self::Holding { buffer, start, end } => {
                    let written = ready!(Pin::new(&mut *writer).poll_write(cx, &buffer[*start..*end]));
                    let written =
                        written.and_then(|n| if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) });
                    let written = written.map_err(Side::Writer)?;
                    *start += written;
                    *moved += written as u64;
                    if start == end {
                        *self = Self::Unflushed;
                    }
                }
                Self::Closing => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Side::Writer)?;
                    *self = Self::Done;
                }
                Self::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads a chunk, or finds the end. With nothing to read it flushes what the writer may keep back.
    fn poll_fill<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Side>>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        let mut buffer = Buffer::take();
        let mut space = ReadBuf::new(&mut buffer);
        match Pin::new(reader).poll_read(cx, &mut space) {
            Poll::Ready(result) => {
                result.map_err(Side::Reader)?;
                let end = space.filled().len();
                *self = if end == 0 { Self::Closing } else { Self::Holding { buffer, start: 0, end } };
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                if matches!(self, Self::Unflushed) {
                    ready!(Pin::new(writer).poll_flush(cx)).map_err(Side::Writer)?;
                    *self = Self::Empty;
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::Duplex;
    use tokio::net::TcpListener;

    /// A peer that sends without end, and whose session ends when told to.
    struct Endless {
        ends: tokio::io::DuplexStream,
    }

    impl AsyncRead for Endless {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            buffer.initialize_unfilled();
            buffer.advance(buffer.remaining());
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(data.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Duplex for Endless {
        fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
            let ended = Pin::new(&mut self.ends).poll_read(cx, &mut ReadBuf::new(&mut [0]));
            ended.map(|_| io::ErrorKind::ConnectionReset.into())
        }

        fn poll_unwanted(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_session_that_ends_resets_also_a_program_that_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let _program = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (accepted, _) = listener.accept().await.expect("the program's connection");
        let (end, ends) = tokio::io::duplex(1);
        let mut moved = Moved::default();
        let splicing = splice(accepted, Box::new(Endless { ends }), &mut moved);
        // The copy goes on until the program's buffers are full; from there on nothing moves.
        drop(end);
        let over = tokio::time::timeout(std::time::Duration::from_secs(60), splicing).await;
        assert!(matches!(over.expect("it hangs"), Err(Broken::Tunnel(_))));
    }

    /// A peer that has said all and ended; its session is over by then.
    struct Ended {
        rest: io::Cursor<Vec<u8>>,
    }

    impl AsyncRead for Ended {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.rest).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Ended {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    impl Duplex for Ended {
        fn poll_lost(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
            match usize::try_from(self.rest.position()) == Ok(self.rest.get_ref().len()) {
                true => Poll::Ready(io::ErrorKind::ConnectionReset.into()),
                false => Poll::Pending,
            }
        }

        fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
            self.poll_lost(cx).map(drop)
        }
    }

    #[tokio::test]
    async fn a_whole_answer_reaches_a_slow_program_also_when_the_session_ends_behind_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut program = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (accepted, _) = listener.accept().await.expect("the program's connection");
        let answer = vec![7; 1 << 20];
        let ended = Ended { rest: io::Cursor::new(answer.clone()) };
        let mut moved = Moved::default();
        let copied = splice(accepted, Box::new(ended), &mut moved).await;
        // It reads nothing before all is over.
        let mut heard = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut program, &mut heard).await;
        assert!(copied.is_ok() && read.is_ok() && heard == answer, "{copied:?} {read:?} after {} bytes", heard.len());
    }

    #[tokio::test]
    async fn whatever_happens_before_it_has_ended_well_the_kernel_resets_a_programs_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let _program = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (accepted, _) = listener.accept().await.expect("the program's connection");
        let mut local = Local::new(accepted);
        let linger = |local: &Local| socket2::SockRef::from(&local.stream).linger().expect("a socket has one");
        // What a process leaves behind that is killed at this moment.
        assert_eq!(linger(&local), Some(std::time::Duration::ZERO));
        local.finish();
        assert_eq!(linger(&local), None);
    }
}
