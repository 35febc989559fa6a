//! One connection to an operator as a value: what may come when, and what is answered (docs/spec/control-plane.md
//! sections 3 to 5).
//!
//! The token is in here from the start and leaves only as the answer to a Hello that verified.

use peerage_model::operator::{
    ChannelBinding, Enrol, GoAway, Hello, HelloError, Passport, Proof, Resume, Revision, ToAgent, ToOperator, Update,
};
use peerage_model::passport::CredentialError;
use peerage_model::{AgentId, AgreementSecret, Credential, Fingerprint, UnixTime};

use super::memory::is_ours;

/// What we have to show.
pub(super) enum Showing {
    /// A ServiceAccount token.
    Token(String),
    /// A passport that counts.
    Passport(Passport),
}

/// What a connection is opened with.
pub(super) struct Opening {
    pub(super) binding: ChannelBinding,
    pub(super) authority: Fingerprint,
    /// The highest sequence of the authority's record that was seen.
    pub(super) record_seen: u64,
    pub(super) key: AgreementSecret,
    pub(super) showing: Showing,
    pub(super) have: Option<Revision>,
}

/// See the module.
pub(super) struct Session {
    authority: Fingerprint,
    key: AgreementSecret,
    phase: Phase,
}

enum Phase {
    /// The other end may be anybody. Nothing was told to it.
    Unproven(Box<Opening>),
    /// It is our operator, and has our first frame.
    Asked,
    /// It takes us for this agent.
    Enrolled(AgentId),
}

/// What a message leads to.
#[derive(Debug)]
pub(super) enum Reaction {
    /// The other end is our operator, whose record has this sequence. Send this.
    Say { record_seen: u64, first: Box<ToOperator> },
    /// A passport of ours, verified.
    Passport { credential: Box<Credential>, passport: Passport },
    /// Whom we may talk to.
    Update(Box<Update>),
    /// The end.
    GoAway(GoAway),
    /// It is alive.
    Nothing,
}

/// Why a connection must end.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the other end did not prove to be the operator of our authority, so nothing was told to it")]
    NotOurs(#[from] HelloError),
    #[error("the operator's key for this connection is not a usable point")]
    WeakKey,
    #[error("the operator sent {what} {when}")]
    OutOfTurn { what: &'static str, when: &'static str },
    #[error("the operator gave a passport that does not verify; check both clocks")]
    BadPassport(#[source] CredentialError),
    #[error("the operator gave a passport of another authority, key or agent than ours")]
    OthersPassport,
}

impl Session {
    pub(super) fn new(opening: Opening) -> Self {
        let (authority, key) = (opening.authority, opening.key.clone());
        Self { authority, key, phase: Phase::Unproven(Box::new(opening)) }
    }

    /// Whether the operator takes us for an agent.
    pub(super) fn is_enrolled(&self) -> bool {
        matches!(self.phase, Phase::Enrolled(_))
    }

    pub(super) fn handle(&mut self, message: ToAgent, now: UnixTime) -> Result<Reaction, SessionError> {
        match (&self.phase, message) {
            (Phase::Unproven(opening), ToAgent::Hello(hello)) => {
                let record = hello.verify(&opening.binding, &opening.authority, opening.record_seen, now)?;
                let first = opening.first_frame(&hello)?;
                self.phase = Phase::Asked;
                Ok(Reaction::Say { record_seen: record.sequence(), first: Box::new(first) })
            }
            (Phase::Unproven(_), message) => Err(out_of_turn(&message, "before it said who it is")),
            (Phase::Asked | Phase::Enrolled(_), ToAgent::Hello(_)) => {
                Err(SessionError::OutOfTurn { what: "Hello", when: "again" })
            }
            (Phase::Asked | Phase::Enrolled(_), ToAgent::Passport(passport)) => self.passport(passport, now),
            (Phase::Enrolled(_), ToAgent::Update(update)) => Ok(Reaction::Update(update)),
            (Phase::Asked, message @ ToAgent::Update(_)) => Err(out_of_turn(&message, "before a passport")),
            (Phase::Asked | Phase::Enrolled(_), ToAgent::GoAway(go_away)) => Ok(Reaction::GoAway(go_away)),
            (Phase::Asked | Phase::Enrolled(_), ToAgent::Keepalive(_)) => Ok(Reaction::Nothing),
        }
    }

    fn passport(&mut self, passport: Passport, now: UnixTime) -> Result<Reaction, SessionError> {
        let credential = Credential::verify(&passport.credential, now).map_err(SessionError::BadPassport)?;
        let same = match &self.phase {
            Phase::Enrolled(us) => credential.agent() == us,
            Phase::Unproven(_) | Phase::Asked => true,
        };
        if !same || !is_ours(&credential, self.authority, &self.key) {
            return Err(SessionError::OthersPassport);
        }
        self.phase = Phase::Enrolled(credential.agent().clone());
        Ok(Reaction::Passport { credential: Box::new(credential), passport })
    }
}

impl Opening {
    fn first_frame(&self, hello: &Hello) -> Result<ToOperator, SessionError> {
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        match &self.showing {
            Showing::Token(token) => {
                let proof = Proof::enrol(&self.binding, &hello.e, &self.key, token).ok_or(SessionError::WeakKey)?;
                let (token, key) = (token.clone(), self.key.public());
                let have = self.have.clone();
                Ok(ToOperator::Enrol(Enrol { token, key, proof, have, version }))
            }
            Showing::Passport(Passport { credential, enrolment }) => {
                let proof = Proof::resume(&self.binding, &hello.e, &self.key, credential);
                let proof = proof.ok_or(SessionError::WeakKey)?;
                let (credential, enrolment, have) = (credential.clone(), enrolment.clone(), self.have.clone());
                Ok(ToOperator::Resume(Resume { credential, enrolment, proof, have, version }))
            }
        }
    }
}

fn out_of_turn(message: &ToAgent, when: &'static str) -> SessionError {
    let what = match message {
        ToAgent::Hello(_) => "Hello",
        ToAgent::Passport(_) => "Passport",
        ToAgent::Update(_) => "Update",
        ToAgent::GoAway(_) => "GoAway",
        ToAgent::Keepalive(_) => "Keepalive",
    };
    SessionError::OutOfTurn { what, when }
}

#[cfg(test)]
mod tests {
    use peerage_model::Authority;
    use peerage_model::operator::{GoAwayCode, Keepalive};
    use peerage_model::passport::{BACKDATED, LIFETIME};
    use zeroize::Zeroizing;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn authority(seed: u8) -> Authority {
        let mut random = Zeroizing::new([seed; 96]);
        random[0] ^= 0x55;
        Authority::new(&random, NOW)
    }

    fn binding() -> ChannelBinding {
        ChannelBinding::new(Zeroizing::new([5; 32]))
    }

    fn key(seed: u8) -> AgreementSecret {
        AgreementSecret::from_bytes([seed; 32])
    }

    fn session(showing: Showing) -> Session {
        let authority = authority(1).fingerprint();
        Session::new(Opening { binding: binding(), authority, record_seen: 0, key: key(3), showing, have: None })
    }

    fn with_token() -> Session {
        session(Showing::Token("token".into()))
    }

    fn hello(of: &Authority) -> ToAgent {
        ToAgent::Hello(Hello::new(of, &binding(), key(2).public()))
    }

    fn passport(of: &Authority, name: &str, key: &AgreementSecret) -> ToAgent {
        let agent = of.agent(name.parse().expect("a name"));
        let signed = of.issue(&agent, key.public(), NOW.minus(BACKDATED), NOW.plus(LIFETIME));
        ToAgent::Passport(Passport { credential: Credential::join(of.record(), signed), enrolment: vec![1] })
    }

    fn enrolled() -> Session {
        let (mut session, ours) = (with_token(), authority(1));
        session.handle(hello(&ours), NOW).expect("it is ours");
        session.handle(passport(&ours, "db.tools", &key(3)), NOW).expect("it is good");
        session
    }

    #[test]
    fn the_token_is_shown_to_the_operator_that_proved_itself() {
        let reaction = with_token().handle(hello(&authority(1)), NOW).expect("it is ours");
        let Reaction::Say { record_seen: 1, first } = reaction else { panic!("{reaction:?}") };
        let ToOperator::Enrol(enrol) = *first else { panic!("it enrols") };
        assert_eq!((enrol.token.as_str(), enrol.check(&binding(), &key(2))), ("token", Ok(())));
    }

    #[test]
    fn to_another_authority_nothing_is_said() {
        let refused = with_token().handle(hello(&authority(2)), NOW);
        assert!(matches!(refused, Err(SessionError::NotOurs(HelloError::OtherAuthority { .. }))), "{refused:?}");
    }

    #[test]
    fn who_has_not_proven_itself_is_not_heard() {
        let go_away = ToAgent::GoAway(GoAway::new(GoAwayCode::Denied, "", None));
        for message in [go_away, ToAgent::Update(Box::default()), passport(&authority(1), "db", &key(3))] {
            let refused = with_token().handle(message, NOW);
            assert!(matches!(refused, Err(SessionError::OutOfTurn { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_passport_that_counts_is_shown_instead_of_a_token() {
        let ToAgent::Passport(ours) = passport(&authority(1), "db.tools", &key(3)) else { panic!("it is one") };
        let mut session = session(Showing::Passport(ours.clone()));
        let reaction = session.handle(hello(&authority(1)), NOW).expect("it is ours");
        let Reaction::Say { first, .. } = reaction else { panic!("{reaction:?}") };
        let ToOperator::Resume(resume) = *first else { panic!("it resumes") };
        assert_eq!((&resume.credential, &resume.enrolment), (&ours.credential, &ours.enrolment));
        assert_eq!(resume.check(&binding(), &key(2), &key(3).public()), Ok(()));
    }

    #[test]
    fn only_a_passport_of_ours_is_taken() {
        let ours = authority(1);
        for (other, why) in [
            (passport(&authority(2), "db.tools", &key(3)), "another authority's"),
            (passport(&ours, "db.tools", &key(4)), "another key's"),
        ] {
            let mut session = with_token();
            session.handle(hello(&ours), NOW).expect("it is ours");
            let refused = session.handle(other, NOW);
            assert!(matches!(refused, Err(SessionError::OthersPassport)), "{why}: {refused:?}");
        }
        let renamed = enrolled().handle(passport(&ours, "other.tools", &key(3)), NOW);
        assert!(matches!(renamed, Err(SessionError::OthersPassport)), "{renamed:?}");
        let late = enrolled().handle(passport(&ours, "db.tools", &key(3)), NOW.plus(LIFETIME));
        assert!(matches!(late, Err(SessionError::BadPassport(_))), "{late:?}");
    }

    #[test]
    fn updates_follow_a_passport() {
        let mut early = with_token();
        early.handle(hello(&authority(1)), NOW).expect("it is ours");
        let refused = early.handle(ToAgent::Update(Box::default()), NOW);
        assert!(matches!(refused, Err(SessionError::OutOfTurn { .. })), "{refused:?}");
        let mut session = enrolled();
        assert!(session.is_enrolled());
        assert!(matches!(session.handle(ToAgent::Update(Box::default()), NOW), Ok(Reaction::Update(_))));
        assert!(matches!(session.handle(ToAgent::Keepalive(Keepalive {}), NOW), Ok(Reaction::Nothing)));
        assert!(matches!(session.handle(hello(&authority(1)), NOW), Err(SessionError::OutOfTurn { .. })));
    }
}
