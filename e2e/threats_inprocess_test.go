package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/enclave"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/internal/testclock"
)

// attests is a security module whose documents nobody verifies.
type attests struct{}

func (attests) Attest(context.Context, nsm.Request) ([]byte, error) { return []byte("document"), nil }

// answers is an engine that counts, by the name that a prompt is.
type answers struct{ runs runs }

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	defer r.Body.Close()
	var asked struct {
		Messages []struct{ Content string }
	}
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
		return nil, err
	}
	a.runs.add(asked.Messages[0].Content)
	return &http.Response{
		StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(`{}`)), ContentLength: 2, Request: r,
	}, nil
}

var _ = Describe("Somebody who replays", Label("threats"), func() {
	It("has no envelope run twice on one key, whatever the clock does", func(ctx SpecContext) {
		sendings := 50_000
		if os.Getenv("MRGC_TEST_LONG") != "" {
			sendings = 1_000_000
		}
		const envelopes = 2000
		clock, engine := testclock.At(time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)), &answers{}
		key, err := credential.New(rand.Reader, "acme")
		Expect(err).NotTo(HaveOccurred())
		f := &forger{model: "told", key: key}
		var enclaves []http.Handler
		for range 2 {
			service, err := enclave.New(ctx, enclave.Config{
				Model: f.model, Region: "use1", Mode: seal.ModeProcess, NSM: attests{}, Engine: engine, Now: clock.Now,
				DocumentTime: func([]byte) (time.Time, error) { return clock.Now(), nil },
				Tenants:      tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant("acme", "edge", string(key.EnclaveToken()))),
			})
			Expect(err).NotTo(HaveOccurred())
			enclaves = append(enclaves, service.Handler())
			w := httptest.NewRecorder()
			enclaves[len(enclaves)-1].ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/recipients", nil))
			var offered api.Recipients
			Expect(json.Unmarshal(w.Body.Bytes(), &offered)).To(Succeed())
			recipient, err := seal.ParseRecipient(offered.Recipients[0].Claims)
			Expect(err).NotTo(HaveOccurred())
			f.recipients = append(f.recipients, recipient)
		}

		var all []replayed
		for range envelopes {
			name := rand.Text()
			// They expire within the time that the test takes on its own clock.
			sealed := f.seal(f.chat(name), func(r *seal.Request) {
				r.Expiry = clock.Now().Add(time.Second + time.Duration(mathrand.IntN(119))*time.Second)
			})
			all = append(all, replayed{f.letter(sealed), name, len(f.recipients)})
		}
		var became runs
		deliver := func(to http.Handler, l *letter) {
			r := httptest.NewRequest(http.MethodPost, l.path, bytes.NewReader(l.body))
			r.Header = l.header.Clone()
			w := httptest.NewRecorder()
			to.ServeHTTP(w, r)
			if w.Code == http.StatusOK {
				became.add("served")
				return
			}
			became.add(api.ParseError(w.Code, w.Body.Bytes()).Code)
		}
		for _, r := range all { // before any has expired, both run each
			for _, to := range enclaves {
				deliver(to, r.letter)
			}
		}
		Expect(became.of).To(Equal(map[string]int{"served": envelopes * len(enclaves)}))

		// Half of what follows has expired by its turn, and half is refused for having run.
		group, working := errgroup.WithContext(ctx)
		workers := runtime.GOMAXPROCS(0)
		for range workers {
			group.Go(func() error {
				for k := 0; k < sendings/workers && working.Err() == nil; k++ {
					deliver(enclaves[mathrand.IntN(len(enclaves))], all[mathrand.IntN(len(all))].letter)
					if k%(sendings/200/workers) == 0 { // forward by some 150 s in all, and sometimes back
						clock.Advance(750 * time.Millisecond / time.Duration(workers))
						if mathrand.IntN(50) == 0 {
							clock.Advance(-5 * time.Second)
						}
					}
				}
				return working.Err()
			})
		}
		Expect(group.Wait()).To(Succeed())
		for _, r := range all {
			Expect(engine.runs.count(r.name)).To(Equal(len(enclaves)))
		}
		Expect(became.of).To(HaveKey("request_expired"), "the clock has gone that far")
		AddReportEntry("replays", fmt.Sprintf("%d envelopes sent %d times to two enclaves: %v", envelopes, sendings+2*envelopes, became.of))
	}, NodeTimeout(25*time.Minute))
})
