//! The programs at both ends: small, blocking, the same for every subject. They use plain TCP and know nothing of what
//! lies between them.

pub mod latencies;
pub mod web;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use peerage_bench::network::Place;
use peerage_bench::{Result, bulk};

use crate::subject::Service;

/// Longer than anything here may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves both services on all addresses of a place, for as long as this process runs.
pub fn serve(place: &Place) -> Result<()> {
    let at = |service: Service| SocketAddr::from((Ipv4Addr::UNSPECIFIED, service.port()));
    bulk::serve(place, at(Service::Bulk))?;
    web::serve(place, place.listen(at(Service::Web))?)
}
