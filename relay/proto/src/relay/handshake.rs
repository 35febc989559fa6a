//! Proving an address, binding, visiting, moving (`docs/spec/relay.md` sections 2 to 4).
//!
//! Ordered by cost: nothing is kept and no key is used before the cookie shows that the sender receives at its address.

use std::sync::Arc;

use aws_lc_rs::constant_time;
use peerage_model::relay::frame::keys::MacKey;
use peerage_model::relay::frame::{self, AliveFlags, Cookie, EndpointId, Grant, Refusal, Tag};
use peerage_model::{AgreementKey, Credential};

use super::proof::{Outcome, Proof, Proven};
use super::{Decision, Ingress, LIFETIME_SECS, Relay, Reply};
use crate::counters::DropReason;
use crate::limits::{CHOICES, COOKIE_WINDOW, RECENT};
use crate::mailbox::Card;
use crate::network::Network;
use crate::place::StreamId;
use crate::table::{Binding, Source};

impl Relay {
    pub(super) fn hello(&mut self, ingress: &Ingress, tag: Tag) -> Decision {
        if self.is_draining() {
            return self.drop_for(DropReason::Full);
        }
        self.challenge(ingress, tag)
    }

    /// COOKIE. The caller has seen to it that at least as many bytes came in.
    pub(super) fn challenge(&mut self, ingress: &Ingress, tag: Tag) -> Decision {
        self.counters.cookies += 1;
        let cookie = self.cookie(ingress, self.window(ingress));
        Decision::Reply(Reply::new(&frame::cookie(tag, cookie, self.boot)))
    }

    fn window(&self, ingress: &Ingress) -> u64 {
        ingress.now.saturating_duration_since(self.started).as_secs() / COOKIE_WINDOW.as_secs()
    }

    fn cookie(&self, ingress: &Ingress, window: u64) -> Cookie {
        let address = frame::address_bytes(ingress.from.address());
        match ingress.from.stream() {
            None => self.boot_key.cookie(window, &address),
            Some(StreamId(number)) => self.boot_key.stream_cookie(window, &address, number),
        }
    }

    /// Cookie first: a forged address must not use up the handshakes of the network it names.
    fn admit(&mut self, ingress: &Ingress, cookie: Cookie) -> Result<(), DropReason> {
        self.prove_address(ingress, cookie)?;
        self.admit_handshake(ingress)
    }

    fn prove_address(&self, ingress: &Ingress, cookie: Cookie) -> Result<(), DropReason> {
        let window = self.window(ingress);
        let is_of = |window| {
            let expected = self.cookie(ingress, window);
            constant_time::verify_slices_are_equal(&expected.0, &cookie.0).is_ok()
        };
        let fresh = is_of(window) || window.checked_sub(1).is_some_and(is_of);
        if fresh { Ok(()) } else { Err(DropReason::BadCookie) }
    }

    fn admit_handshake(&mut self, ingress: &Ingress) -> Result<(), DropReason> {
        let (from, rate) = (ingress.from.address(), self.limits.handshakes);
        let admitted = self.handshakes.admit(&self.boot_key, from, rate, ingress.now);
        if admitted { Ok(()) } else { Err(DropReason::Quota) }
    }

    pub(super) fn bind(
        &mut self,
        ingress: &Ingress,
        tag: Tag,
        cookie: Cookie,
        e: &AgreementKey,
        datagram: &[u8],
    ) -> Decision {
        if let Err(reason) = self.prove_address(ingress, cookie) {
            return self.drop_for(reason);
        }
        // Before any bucket: who waits for its answer and asks again has paid.
        if let Some(answer) = self.repeat_bound(ingress, tag, e) {
            return answer;
        }
        if self.line.holds(ingress.from, &e.0) {
            return Decision::Drop;
        }
        // Who is bound must be able to stay, whoever else comes.
        let here = self.table.id_at(ingress.from).and_then(|id| self.table.get(id));
        let renews = here.and_then(Source::binding).is_some();
        if !self.line.has_room(ingress.from, renews) {
            return self.drop_for(DropReason::Quota);
        }
        if let Err(reason) = self.admit_handshake(ingress) {
            return self.drop_for(reason);
        }
        let bucket = if renews { &mut self.renewals } else { &mut self.newcomers };
        if !bucket.admit(self.limits.binds, ingress.now) {
            return self.drop_for(DropReason::Quota);
        }
        let (key, relay) = (Arc::clone(&self.key), self.public);
        let proof = Proof { key, relay, ingress: *ingress, tag, cookie, e: *e, datagram: datagram.into() };
        self.line.push(proof, renews);
        Decision::Drop
    }

    /// Lets a BIND count for what it turned out to be.
    pub fn conclude(&mut self, proven: Proven) -> Decision {
        let Proven { ingress, tag, e, outcome } = proven;
        let (refusal, reason) = match outcome {
            Outcome::Silence => return self.drop_for(DropReason::BadHandshake),
            Outcome::Refused(refusal, reason) => (refusal, reason),
            Outcome::Proven { credential, session, refusal } => match self.judge(&ingress, &credential, session, &e) {
                Ok((id, binding)) => return self.accept(&ingress, tag, id, binding),
                Err(Judgement::Silence) => return self.drop_for(DropReason::BadHandshake),
                Err(Judgement::Refuse(reason)) => (refusal, reason),
            },
        };
        self.counters.refusals += 1;
        Decision::Reply(Reply::new(&frame::refused(tag, reason, |body| refusal.mac(body))))
    }

    /// BOUND again, if this is the newest BIND of the binding at this address once more: its answer was lost.
    fn repeat_bound(&self, ingress: &Ingress, tag: Tag, e: &AgreementKey) -> Option<Decision> {
        let source = self.table.get(self.table.id_at(ingress.from)?)?;
        let binding = source.binding()?;
        let again = binding.recent[0] == start_of(e);
        again.then(|| self.bound(ingress, tag, source.tag, &binding.session))
    }

    fn judge(
        &mut self,
        ingress: &Ingress,
        credential: &Credential,
        session: MacKey,
        e: &AgreementKey,
    ) -> Result<(EndpointId, Binding), Judgement> {
        let instance = *credential.instance_key();
        let authority = credential.agent().authority;
        if !self.access.admits(&authority) {
            return Err(Refusal::Authority.into());
        }
        if self.is_draining() {
            return Err(Refusal::Draining.into());
        }
        let id = EndpointId::from(credential.instance());
        let route = credential.agent().routing_id();
        let card = Card::new(&credential.agent().name, credential.record());
        let binding = Binding::new(authority, route, instance, session, card, credential.not_after(), start_of(e));
        self.table.drop_if_ended(id, ingress.now, ingress.wall);
        if let Some(former) = self.table.get(id).and_then(Source::binding) {
            let replayed = former.recent.contains(&start_of(e));
            return match former.instance != instance || replayed {
                true => Err(Judgement::Silence),
                false => Ok((id, binding)),
            };
        }
        match self.has_room(ingress, &binding) {
            true => Ok((id, binding)),
            false => Err(Refusal::Full.into()),
        }
    }

    fn has_room(&mut self, ingress: &Ingress, binding: &Binding) -> bool {
        let (here, _) = self.table.residents_of(Network::of(ingress.from));
        let of_authority = self.table.bindings_of(&binding.authority);
        if here >= self.limits.network.bindings || of_authority >= self.limits.authority.bindings {
            return false;
        }
        let visitors = self.table.occupancy().visitors;
        let fits = self.table.make_room_for_binding(self.limits.memory);
        self.counters.shed += (visitors - self.table.occupancy().visitors) as u64;
        fits
    }

    fn accept(&mut self, ingress: &Ingress, tag: Tag, id: EndpointId, binding: Binding) -> Decision {
        self.counters.binds += 1;
        let own_tag = self.boot_key.tag(id);
        let answer = self.bound(ingress, tag, own_tag, &binding.session);
        let known = self.table.get(id).is_some_and(|source| source.binding().is_some());
        if known {
            self.table.relocate(id, ingress.from, ingress.local, ingress.now);
            self.table.renew(id, binding, ingress.now);
        } else {
            let source = Source::bound(ingress.from, ingress.local, own_tag, ingress.now, binding);
            self.table.insert(id, source);
        }
        answer
    }

    fn bound(&self, ingress: &Ingress, tag: Tag, own_tag: Tag, session: &MacKey) -> Decision {
        let grant = self.grant(ingress, own_tag);
        Decision::Reply(Reply::new(&frame::bound(tag, &grant, |body| session.mac(body))))
    }

    fn grant(&self, ingress: &Ingress, tag: Tag) -> Grant {
        Grant { tag, lifetime: LIFETIME_SECS, observed: ingress.from.address() }
    }

    pub(super) fn visit(
        &mut self,
        ingress: &Ingress,
        tag: Tag,
        cookie: Cookie,
        earlier: Option<(EndpointId, Tag)>,
    ) -> Decision {
        if let Err(reason) = self.admit(ingress, cookie) {
            return self.drop_for(reason);
        }
        if let Some(id) = self.table.id_at(ingress.from)
            && !self.table.drop_if_ended(id, ingress.now, ingress.wall)
        {
            let visits = self.table.get(id).is_some_and(|source| source.binding().is_none());
            return match visits {
                true => self.visiting(ingress, tag, id),
                // A replayed VISIT must not end a binding.
                false => self.drop_for(DropReason::BadHandshake),
            };
        }
        let kept = earlier.filter(|(id, tag)| {
            let source = self.table.get(*id);
            source.is_some_and(|source| source.binding().is_none() && source.tag == *tag)
        });
        if let Some((id, _)) = kept {
            self.counters.moves += 1;
            self.table.relocate(id, ingress.from, ingress.local, ingress.now);
            return self.visiting(ingress, tag, id);
        }
        match self.mint_visitor(ingress) {
            Some(id) => self.visiting(ingress, tag, id),
            None => self.drop_for(DropReason::Full),
        }
    }

    fn mint_visitor(&mut self, ingress: &Ingress) -> Option<EndpointId> {
        let (_, here) = self.table.residents_of(Network::of(ingress.from));
        if self.is_draining() || here >= self.limits.visitors_per_network {
            return None;
        }
        let visitors = self.table.occupancy().visitors;
        let fits = self.table.make_room_for_visitor(self.limits.memory);
        self.counters.shed += (visitors - self.table.occupancy().visitors) as u64;
        if !fits {
            return None;
        }
        self.visitors_minted += 1;
        let id = self.boot_key.visitor(self.visitors_minted);
        if self.table.get(id).is_some() {
            return None; // one in 2^64 a try: the client asks again and gets the next
        }
        let tag = self.boot_key.tag(id);
        let source = Source::visitor(ingress.from, ingress.local, tag, ingress.now, self.visitors_minted);
        self.table.insert(id, source);
        Some(id)
    }

    fn visiting(&mut self, ingress: &Ingress, tag: Tag, id: EndpointId) -> Decision {
        self.counters.visits += 1;
        let grant = self.grant(ingress, self.boot_key.tag(id));
        Decision::Reply(Reply::new(&frame::visiting(tag, &grant, id)))
    }

    pub(super) fn relocate(
        &mut self,
        ingress: &Ingress,
        tag: Tag,
        cookie: Cookie,
        id: EndpointId,
        counter: u64,
        datagram: &[u8],
    ) -> Decision {
        if let Err(reason) = self.admit(ingress, cookie) {
            return self.drop_for(reason);
        }
        self.table.drop_if_ended(id, ingress.now, ingress.wall);
        let Some(source) = self.table.get_mut(id) else {
            return self.drop_for(DropReason::BadHandshake);
        };
        let (place, own_tag) = (source.place, source.tag);
        let Some(binding) = source.binding_mut().filter(|binding| binding.session.verifies(datagram)) else {
            return self.drop_for(DropReason::BadHandshake);
        };
        // The last one again, at the address it moved to, is a retransmission.
        let repeated = counter == binding.moves && counter != 0 && place == ingress.from;
        if counter <= binding.moves && !repeated {
            return self.drop_for(DropReason::BadHandshake);
        }
        binding.moves = counter;
        let session = binding.session.clone();
        if !repeated {
            self.counters.moves += 1;
            self.table.relocate(id, ingress.from, ingress.local, ingress.now);
        }
        self.bound(ingress, tag, own_tag, &session)
    }

    /// From whatever address: the MAC says who it is, and who leaves during a NAT's rebinding shall not have to move first.
    /// Not answered, so that it costs a forger more than it costs us; the tag is looked at before the MAC for the same reason.
    pub(super) fn unbind(&mut self, tag: Tag, id: EndpointId, datagram: &[u8]) -> Decision {
        let source = self.table.get(id).filter(|source| source.tag == tag);
        let binding = source.and_then(Source::binding);
        if !binding.is_some_and(|binding| binding.session.verifies(datagram)) {
            return self.drop_for(DropReason::BadHandshake);
        }
        self.counters.unbinds += 1;
        self.table.remove(id);
        Decision::Drop
    }

    pub(super) fn keepalive(&mut self, ingress: &Ingress, tag: Tag, nonce: [u8; 8]) -> Decision {
        let Some(id) = self.table.id_at(ingress.from) else {
            return self.challenge(ingress, tag);
        };
        if self.table.drop_if_ended(id, ingress.now, ingress.wall) {
            return self.challenge(ingress, tag);
        }
        let draining = self.is_draining();
        let route = self.table.get(id).and_then(Source::binding).map(|binding| binding.route);
        let mail = route.is_some_and(|route| self.mailboxes.has_mail(route));
        let others = route.is_some_and(|route| self.table.instances_from(route, id, 2).count() > 1);
        let Some(source) = self.table.get_mut(id).filter(|source| source.tag == tag) else {
            return self.drop_for(DropReason::WrongTag);
        };
        source.last_heard = ingress.now;
        let flags = AliveFlags { draining, mail, others };
        Decision::Reply(Reply::new(&frame::alive(tag, nonce, LIFETIME_SECS, flags)))
    }

    /// Who else has this client's routing id: the next ones round the circle of ids, of those that were heard lately. Nobody
    /// but an instance of that agent is told, since only its authority can make one.
    pub(super) fn who_else(&mut self, ingress: &Ingress, tag: Tag, nonce: [u8; 8]) -> Decision {
        let Some(id) = self.table.id_at(ingress.from) else {
            return self.challenge(ingress, tag);
        };
        let source = self.table.get(id).filter(|source| source.tag == tag);
        let Some(route) = source.and_then(Source::binding).map(|binding| binding.route) else {
            return self.drop_for(DropReason::WrongTag);
        };
        let is_recent = |instance: &EndpointId| {
            let heard = self.table.get(*instance).map(|source| source.last_heard);
            heard.is_some_and(|heard| ingress.now.saturating_duration_since(heard) < RECENT)
        };
        let instances = self.table.instances_from(route, id, CHOICES);
        let others = instances.filter(|instance| *instance != id).filter(is_recent);
        Decision::Reply(Reply::new(&frame::others(tag, nonce, others)))
    }
}

/// Why a BIND that is proven is not granted.
enum Judgement {
    /// A replay: no answer.
    Silence,
    /// Told why not.
    Refuse(Refusal),
}

impl From<Refusal> for Judgement {
    fn from(reason: Refusal) -> Self {
        Self::Refuse(reason)
    }
}

fn start_of(e: &AgreementKey) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&e.0[..8]);
    out
}
