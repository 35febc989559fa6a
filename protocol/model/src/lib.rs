//! Names, ids, passports, snapshots and messages of Peerage, as plain values.
