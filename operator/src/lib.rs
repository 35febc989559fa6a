//! The control plane in Kubernetes: custom resources become passports, allowlists and relay lists.
//!
//! [`index`] knows the cluster and decides; it is pure, and everything else is dull. [`watch`] feeds it, [`serve`] tells
//! agents what it says, [`status`] tells users, [`admission`] puts sidecars into pods. [`authority`] holds the keys that
//! vouch for agents, [`roll`] who has a passport, [`hub`] who is connected, [`linking`] speaks with the operators of other clusters.

pub mod admission;
pub mod ask;
pub mod authority;
pub mod brought;
pub mod causes;
pub mod certificates;
pub mod clock;
pub mod cluster;
pub mod denials;
pub mod facts;
pub mod heap;
pub mod hub;
pub mod index;
pub mod key;
pub mod leader;
pub mod linking;
pub mod links;
pub mod managed;
pub mod metrics;
pub mod notices;
pub mod probe;
pub mod random;
pub mod replicas;
pub mod roll;
pub mod run;
pub mod serve;
pub mod status;
pub mod watch;
