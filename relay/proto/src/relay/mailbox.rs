//! LOOKUP, POST and CHECK (`docs/spec/mailbox.md` section 2).
//!
//! Who speaks is known by place and tag, as for packets; what it may do is charged before it is looked where it goes.

use peerage_model::relay::frame::mailbox::{self, MailId, NameKey, SEALED};
use peerage_model::relay::frame::{self, AliveFlags, COOKIE, EndpointId, Tag};
use peerage_model::{AgreementKey, RoutingId};

use super::{Decision, Ingress, LIFETIME_SECS, Notice, Relay, Reply};
use crate::counters::DropReason;
use crate::mailbox::{Owner, Posted, Room};
use crate::table::Source;

/// Notices of mail that may wait for the socket. More are not needed: ALIVE tells, too.
const NOTICES: usize = 256;

impl Relay {
    pub(super) fn look_up(
        &mut self,
        ingress: &Ingress,
        tag: Tag,
        nonce: [u8; 8],
        name: NameKey,
        e: &AgreementKey,
    ) -> Decision {
        if let Err(answer) = self.resident(ingress, tag, mailbox::LOOKUP) {
            return answer;
        }
        let from = ingress.from.address();
        if self.is_draining() || !self.mailboxes.admit_lookup(&self.boot_key, from, ingress.now) {
            return self.drop_for(DropReason::Quota);
        }
        let Ok(es) = self.key.agree(e) else { return self.drop_for(DropReason::BadHandshake) };
        let key = mailbox::answer_key(&es, &self.public, e);
        self.counters.lookups += 1;
        let answer = self
            .mailboxes
            .look_up(name, |records| mailbox::records(tag, nonce, records.iter().copied(), |body| key.mac(body)));
        Decision::Reply(Reply::new(&answer))
    }

    pub(super) fn post(
        &mut self,
        ingress: &Ingress,
        tag: Tag,
        nonce: [u8; 8],
        to: RoutingId,
        sealed: &[u8; SEALED],
    ) -> Decision {
        if let Err(answer) = self.resident(ingress, tag, mailbox::POST) {
            return answer;
        }
        let from = ingress.from.address();
        if self.is_draining() || !self.mailboxes.admit_post(&self.boot_key, from, ingress.now) {
            return self.drop_for(DropReason::Quota);
        }
        self.counters.posts += 1;
        let kept = self.mailboxes.post(&self.boot_key, to, from, sealed, self.limits.mailbox_memory, ingress.now);
        match kept {
            Posted::Kept => self.announce(to),
            Posted::Discarded => {}
        }
        Decision::Reply(Reply::new(&mailbox::posted(tag, nonce)))
    }

    pub(super) fn check(
        &mut self,
        ingress: &Ingress,
        tag: Tag,
        nonce: [u8; 8],
        done: MailId,
        datagram: &[u8],
    ) -> Decision {
        let id = match self.resident(ingress, tag, datagram.len()) {
            Ok(id) => id,
            Err(answer) => return answer,
        };
        let binding = self.table.get(id).and_then(Source::binding);
        let Some(binding) = binding.filter(|binding| binding.session.verifies(datagram)) else {
            return self.drop_for(DropReason::BadHandshake);
        };
        let route = binding.route;
        let room = Room { memory: self.limits.mailbox_memory, per_network: self.limits.mailboxes_per_network };
        let owner = Owner { route, authority: binding.authority, card: &binding.card, from: ingress.from.address() };
        let is_bound = |route| self.table.instances(route).next().is_some();
        self.mailboxes.keep_open(owner, room, ingress.now, is_bound);
        self.mailboxes.forget(route, done);
        let answer = mailbox::mail(tag, nonce, self.mailboxes.oldest(route), |body| binding.session.mac(body));
        Decision::Reply(Reply::new(&answer))
    }

    /// Who speaks, or what to answer to who is not known here.
    fn resident(&mut self, ingress: &Ingress, tag: Tag, received: usize) -> Result<EndpointId, Decision> {
        let id = self.table.id_at(ingress.from);
        let id = id.filter(|id| !self.table.drop_if_ended(*id, ingress.now, ingress.wall));
        let Some(id) = id else {
            return Err(match received >= COOKIE {
                true => self.challenge(ingress, tag),
                false => self.drop_for(DropReason::Unknown),
            });
        };
        let Some(source) = self.table.get_mut(id).filter(|source| source.tag == tag) else {
            return Err(self.drop_for(DropReason::WrongTag));
        };
        source.last_heard = ingress.now;
        Ok(id)
    }

    /// Tells the owner's instances that mail has come.
    fn announce(&mut self, to: RoutingId) {
        let flags = AliveFlags { mail: true, others: self.table.instances(to).count() > 1, draining: false };
        for id in self.table.instances(to) {
            let Some(source) = self.table.get(id) else { continue };
            if self.notices.len() >= NOTICES {
                return;
            }
            let frame = frame::alive(source.tag, [0; 8], LIFETIME_SECS, flags);
            self.notices.push_back(Notice { to: source.place, local: source.local, frame: Reply::new(&frame) });
        }
    }
}
