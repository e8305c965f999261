// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"

	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/blueprint"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// BlueprintPath is where Kanister's webhook answers.
const BlueprintPath = "/validate/v1alpha1/blueprint"

// blueprintValidator refuses Blueprints that cannot run, as Kanister's webhook does.
// It is the controller's, not the injector's: the controller knows which functions
// there are, and the injector must not gain anything.
type blueprintValidator struct {
	decoder   admission.Decoder
	functions *function.Registry
}

func (v *blueprintValidator) Handle(_ context.Context, r admission.Request) admission.Response {
	var b crv1alpha1.Blueprint
	if err := v.decoder.Decode(r, &b); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if err := blueprint.Validate(&b, v.functions); err != nil {
		return admission.Denied("Invalid blueprint, " + err.Error() + "\n") // Kanister's text
	}
	return admission.Allowed("").WithWarnings(warnings(&b, v.functions)...)
}

// webhookServer serves on WebhookAddress; nil, controller-runtime's own, if there is
// to be none.
func webhookServer(o Options) (webhook.Server, error) {
	if o.WebhookCertDir == "" {
		return nil, nil
	}
	host, text, err := net.SplitHostPort(o.WebhookAddress)
	if err != nil {
		return nil, fmt.Errorf("--webhook-address=%s: %w", o.WebhookAddress, err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("--webhook-address=%s: %w", o.WebhookAddress, err)
	}
	return webhook.NewServer(webhook.Options{Host: host, Port: port, CertDir: o.WebhookCertDir, TLSOpts: []func(*tls.Config){
		func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 },
	}}), nil
}

// warnings are about commands that would show a secret.
func warnings(b *crv1alpha1.Blueprint, functions *function.Registry) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(b.Actions)) {
		for _, s := range blueprint.SecretsInCommands(b.Actions[name], functions) {
			out = append(out, s.String())
		}
	}
	return out
}
