//! What this agent offers.

use peerage_model::Label;
use peerage_model::control::MAX_PORTS;

use super::ChangeError;
use crate::state::document::{Document, Inbound, Service};

impl Document {
    /// Offers a port. Offering the same again with another target moves it.
    ///
    /// # Errors
    /// [`ChangeError::ServiceTaken`] when its name or its number is in use for another, [`ChangeError::TooMany`].
    pub fn expose(&mut self, service: &Service) -> Result<(), ChangeError> {
        let same = |other: &Service| {
            other.name == service.name && (other.port, other.protocol) == (service.port, service.protocol)
        };
        let clash = |other: &&Service| {
            other.name == service.name || (other.port, other.protocol) == (service.port, service.protocol)
        };
        self.end_grants_of_what_is_gone();
        if let Some(there) = self.services.iter().filter(clash).find(|other| !same(other)) {
            return Err(ChangeError::ServiceTaken { name: there.name.clone(), port: there.port });
        }
        self.services.retain(|other| !same(other));
        if self.services.len() >= MAX_PORTS {
            return Err(ChangeError::TooMany { what: "exposed ports", limit: MAX_PORTS });
        }
        self.services.push(service.clone());
        Ok(())
    }

    /// Stops offering what is called `name` or has that number. Who may open it by that name may not any more, also when it is
    /// offered again.
    ///
    /// # Errors
    /// [`ChangeError::UnknownService`].
    pub fn unexpose(&mut self, name: &str) -> Result<Vec<Service>, ChangeError> {
        let meant = |service: &Service| service.name.as_str() == name || service.port.to_string() == name;
        let gone: Vec<Service> = self.services.extract_if(.., |service| meant(service)).collect();
        self.end_grants_of_what_is_gone();
        if gone.is_empty() { Err(self.unknown_service(name)) } else { Ok(gone) }
    }

    /// A name that is exposed later for something else is not what was agreed on.
    fn end_grants_of_what_is_gone(&mut self) {
        for trust in &mut self.trusts {
            if let Inbound::Only(names) = &mut trust.inbound {
                names.retain(|name| self.services.iter().any(|service| service.name == *name));
            }
        }
    }

    /// Names of services for what a person typed: names or port numbers.
    ///
    /// # Errors
    /// [`ChangeError::UnknownService`].
    pub fn service_names(&self, typed: &[String]) -> Result<Vec<Label>, ChangeError> {
        let mut names = Vec::new();
        for text in typed {
            let meant = |service: &&Service| service.name.as_str() == text || service.port.to_string() == *text;
            let found: Vec<Label> = self.services.iter().filter(meant).map(|service| service.name.clone()).collect();
            if found.is_empty() {
                return Err(self.unknown_service(text));
            }
            names.extend(found);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn unknown_service(&self, name: &str) -> ChangeError {
        let known = self.services.iter().map(|service| service.name.to_string()).collect();
        ChangeError::UnknownService { name: name.to_owned(), known }
    }
}
