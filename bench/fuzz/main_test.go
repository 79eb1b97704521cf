package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

func TestWhatWasDoneIsReadAsItWasWritten(t *testing.T) {
	g := NewWithT(t)
	one := &target{
		pkg: "example.com/a", function: "FuzzA", code: "c0de", minutes: 3.25, executions: 12, found: 3, failed: true,
		at: time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC),
	}
	other := &target{pkg: one.pkg, function: one.function, code: one.code}
	other.take(one.row())
	g.Expect(other).To(Equal(one))
	g.Expect(one.row()).To(HaveLen(len(columns)))
}

func TestTargetsAreFoundInSources(t *testing.T) {
	g := NewWithT(t)
	dir := t.TempDir()
	g.Expect(os.WriteFile(filepath.Join(dir, "a_test.go"), []byte("package a\n\nfunc FuzzA(f *testing.F) {}\n\nfunc fuzzB(f *testing.F) {}\n\nfunc FuzzC(f int) {}\n"), 0o600)).To(Succeed())
	g.Expect(fuzzFunctions(dir)).To(Equal([]string{"FuzzA"}))
}

func TestProgressIsUnderstood(t *testing.T) {
	g := NewWithT(t)
	g.Expect(progress.FindStringSubmatch("fuzz: elapsed: 3s, execs: 325017 (108336/sec), new interesting: 11 (total: 202)")).
		To(HaveExactElements(Not(BeEmpty()), "325017", "11"))
}

func TestATurnThatOnlyRanOutOfTimeHasNotFailed(t *testing.T) {
	g := NewWithT(t)
	const late = "fuzz: elapsed: 20s, execs: 53125 (2918/sec), new interesting: 1 (total: 23)\n--- FAIL: FuzzA (20.07s)\n    context deadline exceeded\nFAIL\n"
	g.Expect(lateAtTheEnd([]byte(late))).To(BeTrue())
	for _, said := range []string{
		"PASS\n",
		"--- FAIL: FuzzA (3.10s)\n    --- FAIL: FuzzA (0.00s)\n        a_test.go:9: context deadline exceeded\n    \n    Failing input written to testdata/fuzz/FuzzA/771e938e4458e983\nFAIL\n",
		"--- FAIL: FuzzA (3.10s)\n    fuzzing process hung or terminated unexpectedly: exit status 2\n    Failing input written to testdata/fuzz/FuzzA/771e938e4458e983\nFAIL\n",
	} {
		g.Expect(lateAtTheEnd([]byte(said))).To(BeFalse(), said)
	}
}
