// Run by node where node-llama-cpp is installed: `llama_run.mjs MODEL PROMPTS NEW_TOKENS TEXT`, token ids as JSON.
// Prints the greedy tokens after each prompt, the bytes that the cache has for each token, and the tokens of TEXT.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const require = createRequire(process.cwd() + "/");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const [model_path, prompts, new_tokens, text] = process.argv.slice(2);

const llama = await getLlama({gpu: false, logLevel: LlamaLogLevel.warn, build: "never"});
const model = await llama.loadModel({modelPath: model_path});
const answers = [];
for (const prompt of JSON.parse(prompts)) {
    const context = await model.createContext({
        contextSize: prompt.length + Number(new_tokens), sequences: 1, batchSize: 64, threads: 1,
        flashAttention: false, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
    });
    const found = [];
    for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        found.push(token);
        if (found.length == Number(new_tokens)) break;
    }
    answers.push(found);
    await context.dispose();
}
console.log("RESULT", JSON.stringify({tokens: answers, text: model.tokenize(text)}));
process.exit(0);
