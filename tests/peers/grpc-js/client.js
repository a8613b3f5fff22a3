// gRPC's own xDS client in JavaScript: calls a target again and again and counts what comes back.
//
// usage: NODE_PATH=MODULES node client.js TARGET (GRPC_XDS_BOOTSTRAP_CONFIG says where the control plane is)
//
// Prints what tests/peers/grpc_client.py prints.
'use strict';

const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');

const CALLERS = 4;
const PAUSE_MS = 2;
const DEADLINE_MS = 20000;
// Every so many calls one is a stream of so many messages.
const STREAM_EACH = 5;
const MESSAGES = 3;

const counts = { answers: {}, failed: 0, failures: [] };
let stopped = false;

function say() {
  console.log(JSON.stringify(counts));
}

function pause() {
  return new Promise((done) => setTimeout(done, PAUSE_MS));
}

const bytes = (message) => message;
const deadline = () => ({ deadline: Date.now() + DEADLINE_MS });
const hello = Buffer.from('hello');

function get(client) {
  return new Promise((done, fail) => {
    const take = (error, answer) => (error ? fail(error) : done(answer.toString()));
    client.makeUnaryRequest('/culvert.test.Names/Get', bytes, bytes, hello, new grpc.Metadata(), deadline(), take);
  });
}

function follow(client) {
  return new Promise((done, fail) => {
    const names = [];
    const call = client.makeBidiStreamRequest('/culvert.test.Names/Follow', bytes, bytes, deadline());
    call.on('error', fail);
    call.on('data', (name) => names.push(name.toString()));
    call.on('end', () => {
      if (names.length === MESSAGES) {
        done(names[MESSAGES - 1]);
      } else {
        fail(new Error(`${names.length} answers to ${MESSAGES} messages`));
      }
    });
    (async () => {
      for (let turn = 0; turn < MESSAGES; turn++) {
        await pause();
        call.write(hello);
      }
      call.end();
    })();
  });
}

async function callUntilStopped(client) {
  for (let turn = 1; !stopped; turn++) {
    try {
      const name = await (turn % STREAM_EACH === 0 ? follow(client) : get(client));
      counts.answers[name] = (counts.answers[name] || 0) + 1;
    } catch (error) {
      counts.failed += 1;
      counts.failures = counts.failures.concat(error.message).slice(0, 8);
    }
    await pause();
  }
}

async function main() {
  xds.register();
  const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());
  process.stdin.on('end', () => {
    stopped = true;
  });
  process.stdin.resume();
  const saying = setInterval(say, 100);
  await Promise.all(Array.from({ length: CALLERS }, () => callUntilStopped(client)));
  clearInterval(saying);
  say();
  console.log('ended');
  process.exit(0);
}

main();
