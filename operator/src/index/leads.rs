//! Where a link leads: to which authority, by which of its keys, over which relays.
//!
//! Records come from the link's spec, from the ticket it refers to, and from the other operator or what our agents' peers showed,
//! which the status keeps. Each is signed by the authority's root, so it does not matter who brought it; what matters is which root the
//! link pins. The first that is known is pinned for good.

use peerage_crds::Reason;
use peerage_model::linking::OPERATOR;
use peerage_model::relay::RelayInfo;
use peerage_model::{AuthorityRecord, Fingerprint};

use super::{Index, Refusal};
use crate::facts::{LinkFacts, LinkRecord};

/// Most records of one authority that count: two while its keys rotate.
const MAX_RECORDS: usize = peerage_crds::shape::RECORDS_MAX;

/// What is on the other end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leads<'a> {
    /// Whose agents are there.
    pub authority: Fingerprint,
    /// The records that count, the newest first; at least one.
    pub records: Vec<&'a AuthorityRecord>,
    /// Where they are found.
    pub relays: &'a [RelayInfo],
    /// Whether a machine on its own is there, which has no operator. Never from an AgentTrust: whoever may make one in some
    /// namespace must not decide for all.
    pub is_machine: bool,
}

impl Index {
    /// Where the link of these facts leads.
    ///
    /// # Errors
    /// [`Refusal`], which its condition `Accepted` says.
    pub fn leads<'a>(&'a self, link: &str, facts: &'a LinkFacts) -> Result<Leads<'a>, Refusal> {
        let ticket = self.records.get(link);
        let declared = match &facts.declared {
            Some(Ok(record)) => Some(record),
            Some(Err(cause)) => {
                return Err(Refusal::new(Reason::RecordInvalid, format!("spec.authorityRecord is no record: {cause}")));
            }
            None => None,
        };
        let (brought, of_ticket) = match ticket {
            Some(LinkRecord::Known { record, relays, name: _ }) => (Some(record), relays.as_slice()),
            Some(LinkRecord::Missing | LinkRecord::Invalid { .. }) | None => (None, &[][..]),
        };
        let first = declared.or(brought).or_else(|| facts.learned.first());
        let Some(authority) = facts.authority.or_else(|| first.map(AuthorityRecord::fingerprint)) else {
            return Err(without_record(ticket));
        };
        for (record, whose, reason) in [
            (declared, "spec.authorityRecord is", Reason::RecordInvalid),
            (brought, "the ticket is", Reason::AuthorityChanged),
        ] {
            if let Some(other) = record.map(AuthorityRecord::fingerprint).filter(|found| *found != authority) {
                let message = format!(
                    "{whose} of authority {other}, and the link pins {authority}; make another link to trust another authority"
                );
                return Err(Refusal::new(reason, message));
            }
        }
        let mut records: Vec<_> = facts.learned.iter().chain(declared).chain(brought).collect();
        records.retain(|record| record.fingerprint() == authority);
        records.sort_by_key(|record| std::cmp::Reverse(record.sequence()));
        records.dedup_by_key(|record| record.sequence());
        let newest = records.first().copied();
        records.retain(|record| newest.is_none_or(|newest| !record.is_ended_by(newest, self.now)));
        records.truncate(MAX_RECORDS);
        if records.is_empty() {
            return Err(without_record(ticket));
        }
        let told = (!facts.told.is_empty()).then_some(facts.told.as_slice());
        let relays = facts.relays.as_deref().or(told).unwrap_or(of_ticket);
        let is_machine = match ticket {
            Some(LinkRecord::Known { name, .. }) => name.as_str() != OPERATOR,
            Some(LinkRecord::Missing | LinkRecord::Invalid { .. }) | None => facts.status.machine == Some(true),
        };
        Ok(Leads { authority, records, relays, is_machine })
    }

    /// Whether a link leads to this authority.
    #[must_use]
    pub fn leads_to(&self, authority: &Fingerprint) -> bool {
        self.all_leads().any(|leads| leads.authority == *authority)
    }

    /// Whether a link leads to the authority of this record and knows none as new.
    #[must_use]
    pub fn links_want(&self, record: &AuthorityRecord) -> bool {
        let of = record.fingerprint();
        let is_new = |leads: &Leads<'_>| leads.records.iter().all(|known| known.sequence() < record.sequence());
        self.all_leads().any(|leads| leads.authority == of && is_new(&leads))
    }

    fn all_leads(&self) -> impl Iterator<Item = Leads<'_>> {
        self.links.iter().filter_map(|(name, facts)| self.leads(name, facts).ok())
    }
}

/// Nobody has told any keys.
fn without_record(ticket: Option<&LinkRecord>) -> Refusal {
    match ticket {
        Some(LinkRecord::Invalid { cause }) => Refusal::new(Reason::SecretInvalid, cause.clone()),
        Some(LinkRecord::Missing | LinkRecord::Known { .. }) | None => Refusal::new(
            Reason::SecretNotFound,
            "nothing says which keys the other side has: neither spec.authorityRecord, nor the key of \
             spec.bootstrap.tokenSecretRef in the Secret peerage-tickets, which is not there",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_crds::AgentLink;
    use peerage_model::{Authority, UnixTime};
    use serde_json::{Value, json};
    use std::time::Duration;
    use zeroize::Zeroizing;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn authority(seed: u8) -> Authority {
        Authority::new(&Zeroizing::new([seed; 96]), NOW)
    }

    fn facts(spec: Value, status: Value) -> LinkFacts {
        let mut object = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": {"name": "far"}, "spec": spec, "status": status,
        });
        object["spec"]["allowedNamespaces"] = json!({"from": "All"});
        let object: AgentLink = serde_json::from_value(object).expect("an AgentLink");
        LinkFacts::read(&object).expect("it is read")
    }

    fn index(ticket: Option<&Authority>) -> Index {
        let mut index = Index::new(Fingerprint([1; 32]), NOW);
        index.set_record("far", ticket.map(|of| of_ticket(of, OPERATOR)));
        index
    }

    fn of_ticket(of: &Authority, name: &str) -> LinkRecord {
        let name = name.parse().expect("a name");
        LinkRecord::Known { record: of.record().clone(), name, relays: Vec::new() }
    }

    fn by_ticket() -> Value {
        json!({"bootstrap": {"tokenSecretRef": {}}})
    }

    #[test]
    fn what_is_declared_on_both_sides_needs_neither_ticket_nor_operator() {
        let them = authority(2);
        let declared = json!({"authority": them.fingerprint().to_string(), "authorityRecord": them.record().to_text()});
        let (index, facts) = (index(None), facts(declared, json!(null)));
        assert_eq!(index.leads("far", &facts).map(|leads| leads.records), Ok(vec![them.record()]));
    }

    #[test]
    fn a_link_goes_on_without_its_ticket_by_what_the_status_kept() {
        let them = authority(2);
        let status = json!({
            "authority": them.fingerprint().to_string(), "authorityRecords": [them.record().to_text()],
        });
        let (index, facts) = (index(None), facts(by_ticket(), status));
        assert_eq!(index.leads("far", &facts).map(|leads| leads.authority), Ok(them.fingerprint()));
    }

    #[test]
    fn what_a_ticket_says_of_a_machine_the_status_keeps_and_no_trust_changes() {
        let them = authority(2);
        let is_machine = |index: &Index, facts: &LinkFacts| index.leads("far", facts).map(|leads| leads.is_machine);
        let status = |machine: Value| {
            let records = [them.record().to_text()];
            json!({"authority": them.fingerprint().to_string(), "authorityRecords": records, "machine": machine})
        };
        let (mut index, unsaid) = (index(None), facts(by_ticket(), status(json!(null))));
        let trust = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrust", "metadata": {"name": "odd", "namespace": "web"},
            "spec": {"agentRef": {"name": "shop"}, "peer": {
                "name": "laptop", "linkRef": {"name": "far"}, "authority": them.fingerprint().to_string(),
            }},
        });
        let trust = serde_json::from_value(trust).expect("an AgentTrust");
        let trust = crate::facts::TrustFacts::read(&trust).expect("it is read");
        index.set_link("far", Some(unsaid.clone()));
        index.set_trust(&crate::key::ObjectKey::new("web", "odd"), Some(trust));
        assert_eq!(is_machine(&index, &unsaid), Ok(false), "an AgentTrust says nothing about its link");
        assert_eq!(is_machine(&index, &facts(by_ticket(), status(json!(true)))), Ok(true));
        index.set_record("far", Some(of_ticket(&them, "laptop")));
        assert_eq!(is_machine(&index, &unsaid), Ok(true));
        index.set_record("far", Some(of_ticket(&them, OPERATOR)));
        assert_eq!(is_machine(&index, &unsaid), Ok(false));
    }

    #[test]
    fn another_ticket_moves_no_link_to_another_authority() {
        let (them, others) = (authority(2), authority(3));
        let status = json!({"authority": them.fingerprint().to_string()});
        let (index, facts) = (index(Some(&others)), facts(by_ticket(), status));
        let refusal = index.leads("far", &facts).expect_err("it was pinned");
        assert_eq!(refusal.reason, Reason::AuthorityChanged);
    }

    #[test]
    fn a_record_that_is_none_or_of_somebody_else_is_refused() {
        let (them, others) = (authority(2).fingerprint().to_string(), authority(3));
        for record in ["AAAA".to_owned(), others.record().to_text()] {
            let facts = facts(json!({"authority": them, "authorityRecord": record}), json!(null));
            let refusal = index(None).leads("far", &facts).expect_err("it is not theirs");
            assert_eq!(refusal.reason, Reason::RecordInvalid, "{record}");
        }
    }

    #[test]
    fn while_their_keys_rotate_both_records_count_and_the_newest_comes_first() {
        let old = authority(2);
        let end = NOW.plus(Duration::from_secs(60));
        let new = old.rotate_ending(&Zeroizing::new([9; 64]), end, NOW);
        let spec = json!({"authority": old.fingerprint().to_string(), "authorityRecord": old.record().to_text()});
        let facts = facts(spec, json!({"authorityRecords": [new.record().to_text()]}));
        let mut index = index(None);
        assert_eq!(index.leads("far", &facts).map(|leads| leads.records), Ok(vec![new.record(), old.record()]));
        index.advance(end);
        assert_eq!(index.leads("far", &facts).map(|leads| leads.records), Ok(vec![new.record()]));
    }

    #[test]
    fn relays_are_those_of_the_spec_then_those_that_were_told_then_those_of_the_ticket() {
        let them = authority(2);
        let relay = |name: &str| format!("{}@{name}.example:3478", "a".repeat(52));
        let status = json!({"relays": [relay("told")]});
        let hosts = |facts: &LinkFacts| {
            let index = index(Some(&them));
            let leads = index.leads("far", facts).expect("it leads somewhere");
            leads.relays.iter().map(|relay| relay.host.as_str().to_owned()).collect::<Vec<_>>()
        };
        let mut declared = by_ticket();
        assert_eq!(hosts(&facts(declared.clone(), json!(null))), Vec::<String>::new());
        assert_eq!(hosts(&facts(declared.clone(), status.clone())), ["told.example"]);
        declared["relays"] = json!([relay("declared")]);
        assert_eq!(hosts(&facts(declared, status)), ["declared.example"]);
    }
}
