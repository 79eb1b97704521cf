package attest_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"reflect"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/attest"
)

var _ = Describe("ParseReleases", func() {
	pcr := strings.Repeat("ab", 48)
	image := fmt.Sprintf(`"0":%q,"1":%q,"2":%q`, pcr, pcr, pcr)

	It("reads what JSON wrote", func() {
		rapid.Check(GinkgoT(), func(t *rapid.T) {
			want := rapid.SliceOfN(rapid.Custom(drawRelease), 1, 4).Draw(t, "releases")
			data, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := attest.ParseReleases(data)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("got %v, want %v", got, want)
			}
		})
	})

	It("reads the form that people write", func() {
		releases, err := attest.ParseReleases([]byte(`[{"version": 7, "name": "2026-11", "pcrs": {` + image + `}}]`))
		Expect(err).NotTo(HaveOccurred())
		Expect(releases).To(HaveLen(1))
		Expect(releases[0].Version).To(BeEquivalentTo(7))
		Expect(releases[0].PCRs[2].String()).To(Equal(pcr))
	})

	DescribeTable("refuses",
		func(data, reason string) {
			_, err := attest.ParseReleases([]byte(data))
			Expect(err).To(MatchError(And(HavePrefix("releases: "), ContainSubstring(reason))))
		},
		Entry("nothing", ``, "EOF"),
		Entry("no releases", `[]`, "no release"),
		Entry("null", `null`, "no release"),
		Entry("an object", `{"releases":[]}`, "cannot unmarshal object"),
		Entry("trailing data", `[{"version":1,"name":"a","pcrs":{`+image+`}}] 1`, "after the array"),
		Entry("an unknown field", `[{"version":1,"name":"a","pcrs":{`+image+`},"x":1}]`, "unknown field"),
		Entry("a field twice", `[{"version":1,"version":2,"name":"a","pcrs":{`+image+`}}]`, `"version" appears twice`),
		Entry("a field in another case", `[{"Version":1,"name":"a","pcrs":{`+image+`}}]`, `"Version" is not a lower-case`),
		Entry("a register twice", `[{"version":1,"name":"a","pcrs":{`+image+`,"0":"`+pcr+`"}}]`, `"0" appears twice`),
		Entry("a register in another spelling", `[{"version":1,"name":"a","pcrs":{`+image+`,"+0":"`+pcr+`"}}]`, `"+0" is not`),
		Entry("a register with a leading zero", `[{"version":1,"name":"a","pcrs":{`+image+`,"00":"`+pcr+`"}}]`, `"00" is not`),
		Entry("register 32", `[{"version":1,"name":"a","pcrs":{`+image+`,"32":"`+pcr+`"}}]`, "PCR32"),
		Entry("a short register", `[{"version":1,"name":"a","pcrs":{`+image+`,"3":"ab"}}]`, "PCR3 has 1 bytes"),
		Entry("a register that is not hex", `[{"version":1,"name":"a","pcrs":{`+image+`,"3":"xy"}}]`, "invalid byte"),
		Entry("no PCR2", `[{"version":1,"name":"a","pcrs":{"0":"`+pcr+`","1":"`+pcr+`"}}]`, "PCR2 is missing"),
		Entry("the PCRs of debug mode", `[{"version":1,"name":"a","pcrs":{"0":"`+strings.Repeat("0", 96)+`","1":"`+pcr+`","2":"`+pcr+`"}}]`, "PCR0 is all zero"),
		Entry("no version", `[{"name":"a","pcrs":{`+image+`}}]`, "version is missing"),
		Entry("no name", `[{"version":1,"pcrs":{`+image+`}}]`, "name is missing"),
		Entry("deep nesting", strings.Repeat("[", 1<<20), "nested too deep"),
	)
})

var _ = Describe("ParseRoot", func() {
	chain := newForge().issue()

	It("reads one root", func() {
		cert, err := attest.ParseRoot(toPEM(chain[root].Raw))
		Expect(err).NotTo(HaveOccurred())
		Expect(cert.Equal(chain[root])).To(BeTrue())
	})

	DescribeTable("refuses",
		func(data []byte, reason string) {
			_, err := attest.ParseRoot(data)
			Expect(err).To(MatchError(ContainSubstring(reason)))
		},
		Entry("what is not PEM", []byte("x"), "no PEM block"),
		Entry("another type of block", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY"}), "no PEM block"),
		Entry("two certificates", slices.Concat(toPEM(chain[root].Raw), toPEM(chain[root].Raw)), "more than one"),
		Entry("what is not a certificate", toPEM([]byte("x")), "x509"),
		Entry("a certificate that is no CA", toPEM(chain[leaf].Raw), "not a CA"),
	)
})

func toPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func drawRelease(t *rapid.T) attest.Release {
	r := attest.Release{
		Version: rapid.Uint64Min(1).Draw(t, "version"),
		Name:    rapid.StringN(1, 20, -1).Draw(t, "name"),
		PCRs:    attest.PCRs{},
	}
	indexes := rapid.SliceOfDistinct(rapid.IntRange(3, 31), rapid.ID[int]).Draw(t, "indexes")
	for _, i := range append(indexes, 0, 1, 2) {
		r.PCRs[i] = attest.ExtendedPCR(rapid.SliceOf(rapid.Byte()).Draw(t, "pcr"))
	}
	return r
}
