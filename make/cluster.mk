# SPDX-License-Identifier: Apache-2.0
# A kind cluster anywhere, and the tools of the tests: see test/cluster/README.md.

CLUSTER := cd test/cluster && GOWORK=off go build -o ../../build/cluster . && cd ../.. && build/cluster

##@ Cluster

.PHONY: tools
tools: ## kubectl, kind, kube-apiserver (newest, oldest), etcd and an S3 gateway, into build/.
	@$(CLUSTER) tools

.PHONY: cluster
cluster: ## A kind cluster with storage and cert-manager; a second run takes seconds.
	@$(CLUSTER) up

.PHONY: images
images: ## The product's images, built and loaded into the cluster.
	@$(CLUSTER) images

.PHONY: cluster-down
cluster-down: ## Remove the cluster, and the Docker engine if it was started here.
	@$(CLUSTER) down

.PHONY: cluster-clean
cluster-clean: ## cluster-down, and forget every cache.
	@$(CLUSTER) clean
