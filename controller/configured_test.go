package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state/memory"
)

var _ = Describe("A controller's status", func() {
	It("says which configuration is in force, and why what there is now is not", func(ctx SpecContext) {
		admin, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		c, err := controller.New(controller.Config{
			Region: "use1", Regions: []fleet.Region{"use1"}, Store: memory.New(nil).Open(), Admin: admin, Version: "one",
		})
		Expect(err).NotTo(HaveOccurred())
		life, end := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- c.Run(life) }()
		DeferCleanup(func() { end(); Eventually(done, "10s").Should(Receive(BeNil())) })
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		configured := func() controller.ConfigStatus {
			GinkgoHelper()
			response, err := client.Get("http://" + admin.Addr().String() + "/status")
			Expect(err).NotTo(HaveOccurred())
			defer response.Body.Close()
			var status controller.Status
			Expect(json.NewDecoder(response.Body).Decode(&status)).To(Succeed())
			return status.Config
		}
		Expect(configured()).To(Equal(controller.ConfigStatus{Version: "one"}))
		c.Configured("one", errors.New("regions: none"))
		Expect(configured()).To(Equal(controller.ConfigStatus{Version: "one", Refused: "regions: none"}))
		c.Configured("two", nil)
		Expect(configured()).To(Equal(controller.ConfigStatus{Version: "two"}))
	})
})
