//! Ping, bench and connect.

use std::io::IsTerminal;
use std::process::ExitCode;

use peerage_agent::control::view::{Pong, Throughput};
use peerage_agent::control::{Failure, Request, client};
use peerage_agent::state::Place;
use peerage_output::Output;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Done, failed, system};

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

pub async fn ping(place: &Place, name: String, count: u32, interval_ms: u64, output: Output) -> Done {
    let request = Request::Ping { name: name.clone(), count, interval_ms };
    let mut pongs = client::stream(place, &request).await?;
    let mut rtts = Vec::new();
    let waiting = format!("reaching {name}");
    while let Some(pong) = output.waiting(&waiting, pongs.next::<Pong>()).await? {
        rtts.extend(pong.rtt_ms);
        output.answer(&pong, |pong| {
            let path = pong.path.as_deref().unwrap_or("no session");
            match pong.rtt_ms {
                Some(rtt) => format!("{name}: seq={} path={path} time={rtt:.2} ms", pong.seq),
                None => format!("{name}: seq={} no answer", pong.seq),
            }
        });
    }
    if !output.is_json() {
        output.answer(&rtts, |rtts| summary(count, rtts));
    }
    Ok(if rtts.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn summary(count: u32, rtts: &[f64]) -> String {
    let answered = u32::try_from(rtts.len()).unwrap_or(count);
    let lost = 100 * (count - answered.min(count)) / count.max(1);
    if rtts.is_empty() {
        return format!("{count} sent, none answered");
    }
    let least = rtts.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rtts.iter().copied().fold(0.0, f64::max);
    let mean = rtts.iter().sum::<f64>() / f64::from(answered);
    format!("{count} sent, {answered} answered, {lost} % lost; min/mean/max {least:.2}/{mean:.2}/{most:.2} ms")
}

pub async fn bench(place: &Place, name: String, seconds: u32, output: Output) -> Done {
    let mut reports = client::stream(place, &Request::Bench { name: name.clone(), seconds }).await?;
    let waiting = format!("measuring to {name}");
    while let Some(report) = output.waiting(&waiting, reports.next::<Throughput>()).await? {
        let path = report.path.as_deref().unwrap_or("no session").to_owned();
        match report.done {
            false => output.note(&format!("{:5.1} s  {:.3} Gbit/s sent, {path}", report.seconds, report.gbit_per_s)),
            true => output.answer(&report, |report| {
                format!(
                    "{name}: {:.3} Gbit/s ({} MB in {:.2} s, counted by the peer), {path}",
                    report.gbit_per_s,
                    report.bytes / 1_000_000,
                    report.seconds
                )
            }),
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn connect(place: &Place, name: String, port: u16, message: Option<String>, output: Output) -> Done {
    // A person who types sees nothing move until the other side speaks; anybody else is told what takes long.
    let typing = message.is_none() && std::io::stdin().is_terminal();
    let reaching = format!("reaching {name}");
    let request = Request::Connect { name, port };
    let (connection, stream): (u64, _) = client::raw(place, &request).await?;
    let (mut from_peer, mut to_peer) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        let sent = match message {
            Some(text) => to_peer.write_all(text.as_bytes()).await,
            None => tokio::io::copy(&mut tokio::io::stdin(), &mut to_peer).await.map(drop),
        };
        // Half-close: the peer may still answer. What went wrong is said by the outcome.
        let _ = to_peer.shutdown().await;
        sent
    });
    let mut first = vec![0; CHUNK];
    let read = from_peer.read(&mut first);
    let read = if typing { read.await } else { output.waiting(&reaching, read).await };
    first.truncate(read.unwrap_or(0));
    let copied = copy_out(first, &mut from_peer).await;
    sending.abort();
    let outcome: Result<Value, Failure> = client::call(place, &Request::Outcome { connection }).await;
    let code = match (copied, outcome) {
        (_, Err(failure)) => failed(output, &failure),
        (Err(error), Ok(_)) => failed(output, &system("write to stdout", &error)),
        (Ok(()), Ok(_)) => ExitCode::SUCCESS,
    };
    // The thread that reads stdin cannot be called back, and nothing is left to do: end without waiting for it.
    std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 1 })
}

/// Writes `first` and what follows until the peer is done. A reset says no more here than its outcome does.
async fn copy_out(first: Vec<u8>, from: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<()> {
    let mut stdout = tokio::io::stdout();
    let mut buffer = first;
    while !buffer.is_empty() {
        stdout.write_all(&buffer).await?;
        stdout.flush().await?;
        buffer.resize(CHUNK, 0);
        let count = from.read(&mut buffer).await.unwrap_or(0);
        buffer.truncate(count);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_ends_with_what_it_saw() {
        assert_eq!(summary(4, &[1.0, 3.0]), "4 sent, 2 answered, 50 % lost; min/mean/max 1.00/2.00/3.00 ms");
        assert_eq!(summary(2, &[]), "2 sent, none answered");
    }
}
