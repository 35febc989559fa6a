//! A download outlives everything that can happen to its path.

use peerage_e2e::{Nats, World, transfer};

use crate::support::alone;

/// `scripts/e2e transfer` does it with 1 GiB.
const SIZE: u64 = 128 * 1024 * 1024;

#[test]
fn a_download_by_hostname_keeps_its_sum_while_paths_and_addresses_change() {
    alone("transfer::a_download_by_hostname_keeps_its_sum_while_paths_and_addresses_change", |programs| {
        let world = World::new(programs, Nats::home_routers(), 1)?;
        world.block_direct(true);
        let (client, _server) = world.acquainted()?;
        let transfer = transfer::run(&world, &client, SIZE)?;
        assert_eq!(transfer.size, SIZE);
        let straight = |n: usize| transfer.stages[n].direct > SIZE / 24;
        assert_eq!([0, 1, 2, 3, 4, 5].map(straight), [false, true, false, true, true, true], "{:#?}", transfer.stages);
        Ok(())
    });
}
