# topicell with the versions of constraints.txt. docs/docker.md shows how to build and use the image.
FROM python:3.11-slim-bookworm AS build
# An index of torch builds, for the CPU or for one version of CUDA. Without it, torch comes from pip's usual index.
ARG TORCH_INDEX=""
# Extras of pyproject.toml, with brackets: [dask,scale]
ARG EXTRAS=""
RUN python -m venv /opt/topicell
ENV PATH=/opt/topicell/bin:$PATH
WORKDIR /source
COPY . .
# constraints.txt pins the version of torch; the second command installs what torch needs.
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX" ]; then \
    pip install --no-cache-dir --no-deps -c constraints.txt --index-url "$TORCH_INDEX" torch; \
  fi \
  && pip install --no-cache-dir -c constraints.txt ".$EXTRAS"

FROM python:3.11-slim-bookworm
# Every user may write the caches of the home folder, so that `docker run --user` works.
RUN useradd --uid 1000 --create-home topicell \
  && install --directory --mode 1777 /home/topicell /home/topicell/.cache \
  && install --directory --owner topicell /work
COPY --from=build /opt/topicell /opt/topicell
ENV HOME=/home/topicell PATH=/opt/topicell/bin:$PATH
USER 1000
WORKDIR /work
ENTRYPOINT ["topicell"]
CMD ["--help"]
