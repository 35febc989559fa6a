//! The programs at both ends: small, blocking, the same for every subject. They use plain TCP and know nothing of what
//! lies between them.

pub mod bulk;
pub mod latencies;
pub mod web;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use peerage_bench::Result;
use peerage_bench::network::Place;

use crate::subject::Service;

/// Longer than anything here may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves both services on all addresses of a place, for as long as this process runs.
pub fn serve(place: &Place) -> Result<()> {
    bulk::serve(place, listen(place, Service::Bulk)?)?;
    web::serve(place, listen(place, Service::Web)?)
}

fn listen(place: &Place, service: Service) -> Result<TcpListener> {
    let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, service.port()));
    Ok(place.thread(move || TcpListener::bind(at))?.join().map_err(|_| "binding panicked")??)
}
