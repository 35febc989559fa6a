//! What there is to tell the other side of a link, composed of what this cluster declares.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use peerage_model::linking::{Hello, MAX_PURPOSE, MAX_RELAYS, MAX_WISHES, RecordBytes, Wish};
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentName, InstanceId, TrustId, UnixTime};

use super::line::MAX_DENIED;
use crate::authority::Keyring;
use crate::cluster::State;
use crate::facts::{Target, TrustFacts};
use crate::index::Index;

/// Everything that one link's other side should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) hello: Hello,
    pub(super) wishes: BTreeMap<TrustId, Wish>,
    /// The wish that was first, for each agent over there. A machine's owner is asked once.
    pub(super) first: BTreeMap<AgentName, TrustId>,
    pub(super) denied: BTreeMap<(AgentName, InstanceId), UnixTime>,
}

impl Outgoing {
    /// Over the link with this name.
    pub(super) fn over(link: &str, keys: &Keyring, relays: &[RelayInfo], state: &State) -> Self {
        let wishes = wishes(link, &state.index);
        let first = first(link, &state.index, &wishes);
        Self { hello: hello(keys, relays), wishes, first, denied: denied(link, state) }
    }
}

fn hello(keys: &Keyring, relays: &[RelayInfo]) -> Hello {
    Hello {
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        records: keys.records().map(|record| RecordBytes(record.as_bytes().to_vec())).collect(),
        relays: relays.iter().take(MAX_RELAYS).cloned().collect(),
    }
}

fn wishes(link: &str, index: &Index) -> BTreeMap<TrustId, Wish> {
    let wish = |facts: &TrustFacts| {
        let Target::Away { name: to, .. } = &facts.target else { return None };
        let from = facts.agent.agent(index.authority())?.name;
        let purpose = facts.purpose.as_ref().map(|text| clipped(text));
        Some((facts.uid, Wish { id: facts.uid, from, to: to.clone(), purpose }))
    };
    index.trusts_over(link).filter_map(|(_, facts)| wish(facts)).take(MAX_WISHES).collect()
}

fn first(link: &str, index: &Index, wishes: &BTreeMap<TrustId, Wish>) -> BTreeMap<AgentName, TrustId> {
    let mut wishers: Vec<_> = index.trusts_over(link).map(|(_, facts)| facts).collect();
    // Of one agent's several the eldest is put in last, and stays.
    wishers.sort_by_key(|facts| Reverse((facts.created, facts.uid)));
    wishers.iter().filter_map(|facts| Some((wishes.get(&facts.uid)?.to.clone(), facts.uid))).collect()
}

fn denied(link: &str, state: &State) -> BTreeMap<(AgentName, InstanceId), UnixTime> {
    let agents: BTreeSet<_> = state.index.trusts_over(link).map(|(_, facts)| &facts.agent).collect();
    let agents = agents.into_iter().filter_map(|agent| agent.agent(state.index.authority()));
    let denied = agents.flat_map(|agent| {
        let of_agent = state.roll.denied_of(&agent).into_iter();
        of_agent.map(move |denied| ((agent.name.clone(), denied.instance), denied.until)).collect::<Vec<_>>()
    });
    denied.take(MAX_DENIED).collect()
}

/// As much of a text as a message takes, cut between two characters.
fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_PURPOSE)].to_owned()
}
