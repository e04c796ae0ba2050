//! A function for Amazon's own runtime client, which is linked as it is: two resources with hooks around a snapshot, and
//! an answer that tells what they did. A test runs it in a guest, against the agent.
//!
//! `HOOKS_LOG` names the file in which each hook leaves a line, `HOOKS` says what goes wrong: `fail-before`, `fail-after`,
//! `hang-after`, or nothing.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lambda_runtime::{BoxFuture, Error, LambdaEvent, Runtime, SnapStartResource, service_fn};
use serde_json::{Value, json};

/// What programs keep of their own: a generator that was seeded once. SplitMix64, by Steele, Lea and Flood.
#[derive(Default)]
struct Generator(AtomicU64);

impl Generator {
    fn seed(&self) {
        let mut seed = [0; 8];
        // With no flags the kernel gives so few bytes whole, once it has any.
        if rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).is_ok() {
            self.0.store(u64::from_ne_bytes(seed), Ordering::Relaxed);
        }
    }

    fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What has hooks. The first of two seeds the generator.
struct Resource {
    name: &'static str,
    generator: Arc<Generator>,
}

impl Resource {
    fn note(&self, hook: &str) -> Result<(), Error> {
        let path = std::env::var("HOOKS_LOG")?;
        let mut log = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(writeln!(log, "{hook} {}", self.name)?)
    }
}

fn is_wanted(what: &str) -> bool {
    std::env::var("HOOKS").is_ok_and(|wanted| wanted == what)
}

impl SnapStartResource for Resource {
    fn before_snapshot(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            self.note("before")?;
            match is_wanted("fail-before") {
                true => Err("the pool does not drain".into()),
                false => Ok(()),
            }
        })
    }

    fn after_restore(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            self.note("after")?;
            if is_wanted("fail-after") {
                return Err("the pool does not fill".into());
            }
            while is_wanted("hang-after") {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if self.name == "first" {
                self.generator.seed();
            }
            Ok(())
        })
    }
}

/// Answers `{"draws": N}` with so many draws, at most a million.
fn answer(event: &Value, generator: &Generator) -> Value {
    let draws = event["draws"].as_u64().unwrap_or(0).min(1_000_000);
    let draws: Vec<String> = (0..draws)
        .map(|_| format!("{:016x}", generator.draw()))
        .collect();
    json!({ "draws": draws })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let generator = Arc::new(Generator::default());
    generator.seed();
    let resource = |name| {
        let generator = Arc::clone(&generator);
        Arc::new(Resource { name, generator })
    };
    let [first, second] = ["first", "second"].map(resource);
    let handler = async |event: LambdaEvent<Value>| -> Result<Value, Error> {
        Ok(answer(&event.payload, &generator))
    };
    Runtime::new(service_fn(handler))
        .register_snapstart_resource(first)
        .register_snapstart_resource(second)
        .run()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_of_one_seed_draws_the_same_and_another_seed_heals_it() {
        let [a, b] = [7, 7].map(|seed| Generator(AtomicU64::new(seed)));
        assert_eq!(
            answer(&json!({"draws": 3}), &a),
            answer(&json!({"draws": 3}), &b)
        );
        b.seed();
        assert_ne!(a.draw(), b.draw());
        assert_eq!(answer(&json!({}), &a), json!({"draws": []}));
    }
}
