//! How people and local programs talk to the daemon: JSON lines over a Unix socket.
//!
//! [`message`] is the protocol, [`view`] what it shows, [`failure`] what can go wrong; [`server`] and [`client`] are its
//! two ends. `docs/reference/cli.md` lists the codes.

pub mod client;
pub mod failure;
pub mod message;
pub mod server;
pub mod view;

pub use failure::{Code, Failure};
pub use message::{Request, Terms};
pub use server::{ControlSocket, Handler, Reply};
