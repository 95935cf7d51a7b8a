// Counts what a run of the public cache tests says, beside the results of other caches that come with the suite.
//   node compare.mjs SUITE RESULTS
// A test counts only where all those it depends on have passed, as on the suite's own page.
import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const [suite, results] = process.argv.slice(2)
const { default: groups } = await import(pathToFileURL(path.join(suite, 'tests/index.mjs')))
const tests = new Map(groups.flatMap(group => group.tests).map(test => [test.id, test]))
const read = file => JSON.parse(fs.readFileSync(file, 'utf8'))

const counts = (test, run) => (test.depends_on ?? []).every(id => run[id] === true && (!tests.has(id) || counts(tests.get(id), run)))
const kindOf = test => test.kind ?? 'required'
const measured = run => [...tests.values()].filter(test => !test.browser_only && test.id in run && counts(test, run))

const row = (name, run) => {
  const cells = ['required', 'optimal'].map(kind => {
    const of = measured(run).filter(test => kindOf(test) === kind)
    return `${of.filter(test => run[test.id] === true).length} of ${of.length}`
  })
  console.log(`${name.padEnd(16)}${cells.map(cell => cell.padStart(14)).join('')}`)
}

const own = read(results)
console.log(`${''.padEnd(16)}${'required'.padStart(14)}${'optimal'.padStart(14)}`)
row('Seiketsu', own)
for (const file of fs.readdirSync(path.join(suite, 'results')).filter(file => file.endsWith('.json'))) {
  const name = path.basename(file, '.json')
  if (!['chrome', 'firefox', 'safari'].includes(name)) row(name, read(path.join(suite, 'results', file)))
}
console.log('\nNot passed:')
for (const test of measured(own).filter(test => own[test.id] !== true && kindOf(test) !== 'check')) {
  console.log(`  ${kindOf(test).padEnd(9)} ${test.id}: ${own[test.id][1]}`)
}
