//! The links that this cluster declares, as the operator keeps them: where each leads, and how it is spoken over.

use std::collections::BTreeMap;

use peerage_model::Label;
use peerage_model::relay::RelayInfo;

use super::agent::{Link, Side};
use crate::index::Index;

/// Links by name, with the key of each one's ticket.
pub(super) type Declared = BTreeMap<String, (Link, Option<String>)>;

/// Those that lead to others. `guests` are the relays of who came with a ticket of a link that names none yet. Of several to one cluster the first by name has the channel; a ticket is each link's own.
pub(super) fn declared(index: &Index, guests: &BTreeMap<String, Vec<RelayInfo>>) -> Declared {
    let mut links = Declared::new();
    let mut channels: BTreeMap<_, Label> = BTreeMap::new();
    for (name, facts) in index.links() {
        let (Ok(leads), Ok(label)) = (index.leads(name, facts), name.parse::<Label>()) else { continue };
        if leads.authority == index.authority() {
            continue;
        }
        let side = match (leads.is_machine, channels.get(&leads.authority)) {
            (true, _) => Side::Machine,
            (false, Some(channel)) => Side::Beside(channel.clone()),
            (false, None) => Side::Operator,
        };
        if side == Side::Operator {
            channels.insert(leads.authority, label.clone());
        }
        let relays = match leads.relays {
            [] => guests.get(name).cloned().unwrap_or_default(),
            relays => relays.to_vec(),
        };
        let link = Link {
            name: label,
            uid: facts.uid,
            authority: leads.authority,
            records: leads.records.into_iter().cloned().collect(),
            relays,
            side,
            is_taken: facts.status.ticket_taken == Some(true),
        };
        links.insert(name.clone(), (link, facts.ticket.clone()));
    }
    links
}

#[cfg(test)]
mod tests {
    use peerage_model::linking::OPERATOR;
    use peerage_model::{Fingerprint, UnixTime};
    use serde_json::json;

    use super::*;
    use crate::facts::{LinkFacts, LinkRecord};
    use crate::linking::agent;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    /// Two links, by two tickets of one authority's agent of this name.
    fn two_links_to(agent: &str) -> Vec<(Link, Option<String>)> {
        let theirs = peerage_model::Authority::new(&zeroize::Zeroizing::new([3; 96]), NOW);
        let mut index = Index::new(Fingerprint([1; 32]), NOW);
        for name in ["one", "two"] {
            let link = json!({
                "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": {"name": name},
                "spec": {"allowedNamespaces": {"from": "All"}, "bootstrap": {"tokenSecretRef": {"key": name}}},
            });
            let link = serde_json::from_value(link).expect("an AgentLink");
            index.set_link(name, Some(LinkFacts::read(&link).expect("it is read")));
            let (record, name_there) = (theirs.record().clone(), agent.parse().expect("a name"));
            index.set_record(name, Some(LinkRecord::Known { record, name: name_there, relays: Vec::new() }));
        }
        declared(&index, &BTreeMap::new()).into_values().collect()
    }

    #[test]
    fn two_tickets_of_one_machine_are_two_links_and_no_channel() {
        let links = two_links_to("laptop");
        let tickets: Vec<_> = links.iter().map(|(_, ticket)| ticket.as_deref()).collect();
        assert_eq!(tickets, [Some("one"), Some("two")]);
        let links: Vec<_> = links.into_iter().map(|(link, _)| link).collect();
        assert!(links.iter().all(|link| link.side == Side::Machine), "{links:?}");
        let ours = crate::authority::Stored::mint(&zeroize::Zeroizing::new([4; 96]), NOW);
        let snapshot = agent::snapshot(&ours.keyring(NOW), &links, Vec::new(), Vec::new());
        assert_eq!(snapshot.peers, [], "nobody of a machine's authority passes for an operator");
    }

    #[test]
    fn of_two_links_to_one_cluster_one_has_the_channel_and_each_its_ticket() {
        let links = two_links_to(OPERATOR);
        let sides: Vec<_> = links.iter().map(|(link, ticket)| (link.side.clone(), ticket.as_deref())).collect();
        let one = "one".parse().expect("a label");
        assert_eq!(sides, [(Side::Operator, Some("one")), (Side::Beside(one), Some("two"))]);
    }
}
