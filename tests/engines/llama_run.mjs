// Run by node where node-llama-cpp is installed: `llama_run.mjs PROMPTS NEW_TOKENS CONTEXT MODEL…`, token ids as JSON.
// Prints for each model the greedy tokens after each prompt, and the bytes that the cache has for each token.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const require = createRequire(process.cwd() + "/");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const [prompts, new_tokens, contextSize, ...models] = process.argv.slice(2);

let buffers = 0;
function read(level, message) {
    // llama.cpp says a size with two decimals of a MiB: a cache of 512 tokens has to be a whole number of them.
    const found = /KV buffer size = +([0-9.]+) MiB/.exec(message);
    if (found) buffers += Number(found[1]) * 2 ** 20;
}
const llama = await getLlama({gpu: false, logLevel: LlamaLogLevel.info, logger: read, build: "never"});

async function answer(modelPath) {
    const model = await llama.loadModel({modelPath});
    const tokens = [];
    let bytes_per_token = 0;
    for (const prompt of JSON.parse(prompts)) {
        buffers = 0;
        const context = await model.createContext({
            contextSize: Number(contextSize), sequences: 1, batchSize: 64, threads: 1, flashAttention: false,
            swaFullCache: true, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
        });
        const found = [];
        for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
            found.push(token);
            if (found.length == Number(new_tokens)) break;
        }
        tokens.push(found);
        bytes_per_token = buffers / context.contextSize;  // its messages come later than the context
        await context.dispose();
    }
    await model.dispose();
    return {tokens, bytes_per_token};
}

for (const model of models) {
    const reply = await answer(model).catch((error) => ({error: String(error)}));
    console.log("RESULT", JSON.stringify(reply));
}
process.exit(0);
