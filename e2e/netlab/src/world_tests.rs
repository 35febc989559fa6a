//! The stages of a datagram, without a kernel.

use std::time::Duration;

use super::*;

const A: HostId = HostId(0);
const B: HostId = HostId(1);
const RELAY: HostId = HostId(2);

#[test]
fn a_nat_judges_a_datagram_when_it_arrives_and_not_when_it_was_sent() {
    let mut world = internet(NatKind::port_restricted_cone());
    let now = Instant::now();
    let (public_a, public_b) = (seen_by_relay(&mut world, now, A), seen_by_relay(&mut world, now, B));
    let mut early = frame(public_b);
    let arriving = follow(&mut world, now, A, &mut early, Stop::AtDoor);
    // On its way, the other side opens its door from the inside.
    follow(&mut world, now, B, &mut frame(public_a), Stop::AtDoor);
    let mut datagram = Datagram::parse(&mut early).expect("UDP");
    assert_eq!(world.advance(now, A, arriving, &mut datagram), Next::Deliver(B));
    assert_eq!(datagram.destination(), inside(B));
}

#[test]
fn links_add_up_and_each_direction_is_its_own() {
    let mut world = internet(NatKind::none());
    let now = Instant::now();
    let ms = |n| LinkConfig::with_delay(Duration::from_millis(n));
    world.set_access(A, Access { up: ms(10), down: ms(1) });
    world.set_access(B, Access { up: ms(2), down: ms(20) });
    assert_eq!(travel_time(&mut world, now, A, public(B)), Duration::from_millis(30));
    assert_eq!(travel_time(&mut world, now, B, public(A)), Duration::from_millis(3));
}

#[test]
fn a_block_stands_in_both_directions_and_leaves_others_alone() {
    let mut world = internet(NatKind::none());
    let now = Instant::now();
    world.block(A, B, true);
    for (from, to) in [(A, B), (B, A)] {
        assert_eq!(end(&mut world, now, from, public(to)), Next::Drop);
        assert_eq!(world.drops(from).blocked, 1);
    }
    assert_eq!(end(&mut world, now, A, public(RELAY)), Next::Deliver(RELAY));
    world.block(B, A, false);
    assert_eq!(end(&mut world, now, A, public(B)), Next::Deliver(B));
}

#[test]
fn a_delivery_is_counted_once_with_its_headers() {
    let mut world = internet(NatKind::home_router());
    end(&mut world, Instant::now(), A, public(RELAY));
    assert_eq!(world.traffic(A, RELAY), Traffic { packets: 1, bytes: 20 + 8 + 4 });
    assert_eq!(world.traffic(RELAY, A), Traffic::default());
}

#[test]
fn nobody_has_an_address_that_was_left() {
    let mut world = internet(NatKind::none());
    world.set_host_address(B, Ipv4Addr::new(198, 51, 100, 77));
    let now = Instant::now();
    assert_eq!(end(&mut world, now, A, public(B)), Next::Drop);
    assert_eq!(world.drops(A).unroutable, 1);
    assert_eq!(end(&mut world, now, A, SocketAddrV4::new([198, 51, 100, 77].into(), 4000)), Next::Deliver(B));
}

#[test]
fn an_inside_address_is_no_route_for_strangers() {
    let mut world = internet(NatKind::full_cone());
    assert_eq!(end(&mut world, Instant::now(), RELAY, inside(B)), Next::Drop);
    assert_eq!(world.drops(RELAY).unroutable, 1);
}

#[test]
fn the_same_seed_gives_the_same_losses() {
    let lost = |seed| {
        let mut world = World::new(seed);
        add_hosts(&mut world, NatKind::none());
        let loss = peerage_sim::link::Chance::percent(30);
        world.set_access(A, LinkConfig { loss, ..LinkConfig::default() }.into());
        let now = Instant::now();
        (0..64).map(|_| end(&mut world, now, A, public(B)) == Next::Drop).collect::<Vec<_>>()
    };
    assert_eq!(lost(1), lost(1));
    assert_ne!(lost(1), lost(2));
}

/// A and B, each behind its own NAT of this kind, and a relay without one.
fn internet(kind: NatKind) -> World {
    let mut world = World::new(7);
    add_hosts(&mut world, kind);
    world
}

fn add_hosts(world: &mut World, kind: NatKind) {
    for (host, kind) in [(A, kind), (B, kind), (RELAY, NatKind::none())] {
        let site = world.add_site(kind, *public(host).ip(), Access::default());
        let address = if kind == NatKind::None { public(host) } else { inside(host) };
        assert_eq!(world.add_host(site, *address.ip()), host);
    }
}

fn public(host: HostId) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, host.0 as u8 + 1), 4000)
}

fn inside(host: HostId) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, host.0 as u8 + 1, 2), 4000)
}

fn seen_by_relay(world: &mut World, now: Instant, from: HostId) -> SocketAddrV4 {
    let mut frame = frame(public(RELAY));
    follow(world, now, from, &mut frame, Stop::AtEnd);
    Datagram::parse(&mut frame).expect("UDP").source()
}

fn end(world: &mut World, now: Instant, from: HostId, to: SocketAddrV4) -> Next {
    let mut frame = frame(to);
    let stage = follow(world, now, from, &mut frame, Stop::AtDoor);
    if stage == Stage::Depart {
        return Next::Drop;
    }
    world.advance(now, from, stage, &mut Datagram::parse(&mut frame).expect("UDP"))
}

fn travel_time(world: &mut World, start: Instant, from: HostId, to: SocketAddrV4) -> Duration {
    let mut frame = frame(to);
    let mut datagram = prepare(world, from, &mut frame);
    let (mut now, mut stage) = (start, Stage::Depart);
    while let Next::Later(arrivals, next) = world.advance(now, from, stage, &mut datagram) {
        (now, stage) = (arrivals.first.expect("nothing is lost"), next);
    }
    now - start
}

#[derive(PartialEq)]
enum Stop {
    /// Before the receiver's NAT has judged.
    AtDoor,
    AtEnd,
}

/// Follows a datagram, all at one instant; the stage it stopped at, `Depart` where it was dropped on the way.
fn follow(world: &mut World, now: Instant, from: HostId, frame: &mut [u8], stop: Stop) -> Stage {
    let mut datagram = prepare(world, from, frame);
    let mut stage = Stage::Depart;
    loop {
        match world.advance(now, from, stage, &mut datagram) {
            Next::Later(arrivals, next) if arrivals.first.is_some() => stage = next,
            Next::Deliver(_) => return stage,
            Next::Later(..) | Next::Drop => return Stage::Depart,
        }
        if stop == Stop::AtDoor && matches!(stage, Stage::Arrive(_)) {
            return stage;
        }
    }
}

/// Gives the datagram the address of the host that sends it.
fn prepare<'a>(world: &World, from: HostId, frame: &'a mut [u8]) -> Datagram<'a> {
    let mut datagram = Datagram::parse(frame).expect("UDP");
    datagram.set_source(SocketAddrV4::new(world.address_of(from), 4000));
    datagram
}

/// Four bytes of payload without a checksum.
fn frame(to: SocketAddrV4) -> Vec<u8> {
    let mut frame = vec![0; crate::packet::HEADROOM];
    frame.extend_from_slice(&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&to.ip().octets());
    for field in [4000, to.port(), 12, 0] {
        frame.extend_from_slice(&u16::to_be_bytes(field));
    }
    frame.extend_from_slice(b"data");
    frame
}
