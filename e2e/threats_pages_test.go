package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// envoyPage is a line of Envoy's /help: a page, and whether asking for it changes
// something.
var envoyPage = regexp.MustCompile(`(?m)^  (/[a-z0-9_/]*)( \(POST\))?: `)

// notRead are pages that are not, and why.
var notRead = map[string]string{
	"/decisions/{id}": "the trace, /decisions, has all of them",
	"/healthcheck/ok": "changes", "/healthcheck/fail": "changes",
}

// adminPages are all pages of all admins of a cluster that answer GET and change
// nothing, as each admin names them itself; left are the others, with the reason.
func (a *rootAttacker) adminPages(ctx context.Context) (pages, left []string) {
	GinkgoHelper()
	admins := map[string]int{}
	for name, base := range a.c.env() {
		var own []string
		switch {
		case strings.HasPrefix(name, "MRGC_ENVOY_ADMIN_"):
			own = []string{"/help"}
			for _, found := range envoyPage.FindAllStringSubmatch(get(ctx, base+"/help"), -1) {
				if found[2] != "" {
					left = append(left, found[1]+" (POST)")
					continue
				}
				own = append(own, found[1])
			}
			Expect(own).To(ContainElements("/config_dump", "/stats", "/clusters", "/server_info"))
			own = append(own, "/config_dump?include_eds", "/stats/prometheus", "/clusters?format=json")
			admins["envoy"]++
		case strings.HasPrefix(name, "MRGC_ADMIN_"):
			var index struct {
				Pages []string `json:"pages"`
			}
			Expect(json.Unmarshal([]byte(get(ctx, base+"/")), &index)).To(Succeed())
			Expect(index.Pages).To(ContainElements("/fleet", "/weights", "/envoys", "/releases", "/decisions", "/peers", "/load", "/metrics"))
			own = append(index.Pages, "/")
			admins["router"]++
		case strings.HasPrefix(name, "MRGC_METRICS_"): // a parent's, which has that page alone
			own = []string{""}
			admins["parent"]++
		case strings.HasPrefix(name, "MRGC_CONTROLLER_"):
			own = []string{"/status", "/metrics"}
			admins["controller"]++
		}
		for _, page := range own {
			if why := notRead[page]; why != "" {
				left = append(left, page+" ("+why+")")
				continue
			}
			pages = append(pages, base+page)
		}
	}
	Expect(admins).To(Equal(map[string]int{"envoy": 1, "router": len(a.named("router-")), "parent": 2, "controller": 1}))
	return pages, left
}

// fetchPage reads a page, whatever its status.
func fetchPage(ctx context.Context, url string) (int, []byte) {
	GinkgoHelper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	Expect(err).NotTo(HaveOccurred())
	resp, err := http.DefaultClient.Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred(), url)
	return resp.StatusCode, content
}
